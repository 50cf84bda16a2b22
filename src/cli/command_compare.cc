// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <iostream>

#include "cli/arguments.h"
#include "cli/command.h"
#include "cli/models.h"
#include "cli/output_path.h"
#include "cli/progress.h"
#include "cli/report.h"
#include "cli/table.h"
#include "cli/terminal.h"
#include "fovea/inference/compare.h"
#include "fovea/io/file.h"

namespace fovea::cli {
namespace {

// What `fovea compare` measures when no recipe is named: one of each kind.
constexpr const char* kDefaultRecipes[] = {"minference", "quest", "duo", "rotatekv:bits=2"};

struct Arguments {
  std::string model, text, lengths, html;
  std::vector<std::string> recipes;
  SetArgument set;
  ThreadsArgument threads;
  bool json = false;
};

std::string print_comparison(const inference::Comparison& comparison) {
  std::string text;
  const inference::RecipeMeasurement* exact = nullptr;
  for (size_t i = 0; i < comparison.rows.size();) {
    const int64_t length = comparison.rows[i].length;
    exact = &comparison.rows[i];
    Table table({{"recipe"},
                 {"first token", true},
                 {"speed-up", true},
                 {"decode tok/s", true},
                 {"KV held", true},
                 {"read/step", true},
                 {"density", true},
                 {"KL", true},
                 {"top-1", true},
                 {"perplexity", true},
                 {"facts", true}});
    for (; i < comparison.rows.size() && comparison.rows[i].length == length; ++i) {
      const auto& row = comparison.rows[i];
      table.add({row.recipe, print_seconds(row.first_token_seconds),
                 print_fixed(exact->first_token_seconds / row.first_token_seconds, 2) + "x",
                 print_fixed(row.decode_tokens_per_second, 1),
                 print_quantity(static_cast<double>(row.kv_bytes), "B"),
                 print_quantity(static_cast<double>(row.read_bytes), "B"),
                 print_fixed(100 * row.density, 1) + "%", print_fixed(row.kl, 4),
                 print_fixed(100 * row.agreement, 1) + "%", print_fixed(row.perplexity, 2),
                 std::to_string(row.facts_found()) + "/" + std::to_string(row.answers.size())});
    }
    text += (text.empty() ? "" : "\n") + std::to_string(length) + " tokens (" +
            std::to_string(exact->prompt_tokens) + " in the prompt, " +
            std::to_string(exact->decoded_tokens) + " decoded one by one)\n\n" +
            table.to_string(terminal_width());
  }
  return text;
}

void run_compare(const Arguments& arguments) {
  arguments.threads.apply();
  std::vector<model::Recipe> recipes;
  std::vector<std::string> lines = arguments.recipes;
  if (lines.empty()) lines.assign(std::begin(kDefaultRecipes), std::end(kDefaultRecipes));
  for (const auto& line : lines) recipes.push_back(model::Recipe::parse(line));
  auto options = options::from_pairs<inference::CompareOptions>(arguments.set.pairs(), "compare");
  if (!arguments.lengths.empty()) options.lengths = parse_lengths(arguments.lengths, "--length");
  if (!arguments.html.empty()) check_output_path(arguments.html);
  if (arguments.html.empty()) options.map_size = 0;
  const std::string text = io::read_text(arguments.text);
  const std::string path = resolve_model(arguments.model).string();
  const auto model = load_model(path);
  ReportSetting setting{.model_name = model->config().name,
                        .model_path = path,
                        .text = std::filesystem::path(arguments.text).filename().string(),
                        .layers = model->config().layers,
                        .heads_q = model->config().heads_q,
                        .heads_kv = model->config().heads_kv};
  if (setting.model_name.empty()) setting.model_name = std::filesystem::path(path).filename().string();

  inference::Comparison comparison;
  {
    Progress progress("comparing", 1000);
    comparison = inference::compare(model, text, recipes, options, [&](const std::string& what, double done) {
      progress.update(static_cast<int64_t>(1000 * done), what);
    });
  }
  if (!arguments.html.empty()) {
    const std::string page = comparison_html(comparison, setting);
    io::AtomicFile file(arguments.html);
    file.write(page.data(), page.size());
    file.commit();
  }
  if (arguments.json)
    std::cout << comparison_json(comparison, setting, false)
                     .dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace)
              << "\n";
  else
    std::cout << print_comparison(comparison);
}

}  // namespace

Command add_compare(CLI::App& program) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* parser = program.add_subcommand(
      "compare", "Quality and speed of recipes on a real model; table and HTML report.");
  parser
      ->add_option("-m,--model", arguments->model, "path or name of a model; the default model when left out")
      ->type_name("MODEL");
  parser->add_option("--text", arguments->text, "a long text to read")->required()->type_name("FILE");
  parser
      ->add_option("--recipe", arguments->recipes,
                   "how to attend; repeatable (default: minference, quest, duo, rotatekv:bits=2)")
      ->type_name("RECIPE")
      ->allow_extra_args(false);
  parser->add_option("--length", arguments->lengths, "tokens of text, e.g. 1k,4k,8k (default 8k)")
      ->type_name("N[,N...]");
  parser->add_option("--html", arguments->html, "write a self-contained report with plots and attention maps")
      ->type_name("FILE");
  arguments->set.add_to(*parser);
  arguments->threads.add_to(*parser);
  parser->add_flag("--json", arguments->json, "the measurements as JSON on stdout");
  parser->footer(
      "Exact attention is always measured first. Each recipe reads the text up to its last tokens as a "
      "prompt, then decodes the\n"
      "rest one by one; KL, top-1 agreement and perplexity are over those, the facts are planted in the text "
      "and asked for at\n"
      "its end.\n\n"
      "Example:\n"
      "  fovea compare --text book.txt --length 2k,8k --recipe minference \\\n"
      "    --recipe \"prefill=minference; cache=quest:budget=512+rotatekv:bits=4\" --html report.html");
  return {parser, [arguments] { run_compare(*arguments); }};
}

}  // namespace fovea::cli
