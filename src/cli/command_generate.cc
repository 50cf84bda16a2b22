// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>

#include "cli/arguments.h"
#include "cli/command.h"
#include "cli/models.h"
#include "cli/progress.h"
#include "cli/table.h"
#include "cli/terminal.h"
#include "fovea/io/file.h"
#include "fovea/model/chat.h"
#include "fovea/model/generate.h"

namespace fovea::cli {
namespace {

struct GenerateArguments {
  std::string model, prompt, file, system, recipe = "exact";
  std::string tokens = "256", context;
  bool chat = false, raw = false, ignore_end = false, stats = false, json = false;
  ThreadsArgument threads;
  std::vector<std::string> sampler;  // as the flags gave them, one for each field of SamplerOptions
};

std::string flag_of(const std::string& option) {
  std::string flag = "--" + option;
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

model::SamplerOptions sampler_options(const GenerateArguments& arguments) {
  const auto infos = options::describe<model::SamplerOptions>();
  options::Pairs pairs;
  for (size_t i = 0; i < infos.size(); ++i)
    if (!arguments.sampler[i].empty()) pairs.emplace_back(infos[i].name, arguments.sampler[i]);
  return options::from_pairs<model::SamplerOptions>(pairs, "generate");
}

std::string prompt_text(const GenerateArguments& arguments) {
  std::string text;
  if (!arguments.file.empty()) text = io::read_text(arguments.file);
  if (!text.empty() && !arguments.prompt.empty()) text += "\n\n";
  text += arguments.prompt;
  require(!text.empty(), "generate: the prompt is empty; give --prompt, --file or both");
  return text;
}

// An instruct model expects its own writing of a conversation; a base model continues plain text.
std::vector<int32_t> prompt_tokens(const GenerateArguments& arguments, const model::Model& model) {
  const std::string text = prompt_text(arguments);
  const bool chat = arguments.chat || (!arguments.raw && !model.chat_template().empty());
  if (!chat) return model.tokenizer().encode(text, true, false);
  require(!model.chat_template().empty(), "--chat: the model has no chat template; use --raw");
  std::vector<model::ChatMessage> messages;
  if (!arguments.system.empty()) messages.push_back({"system", arguments.system});
  messages.push_back({"user", text});
  const auto format = model::recognise_chat_template(model.chat_template());
  return model.tokenizer().encode(model::format_chat(format, messages), true, true);
}

// Layers done while a long prompt is read. A planner would plan twice while observed, so recipes with one
// show nothing.
void show_progress(model::Session& session, Progress& progress) {
  if (!stderr_is_terminal() || !session.recipe().prefill.empty()) return;
  session.observe(
      [&progress, done = int64_t{0}](const model::PrefillView&) mutable { progress.update(++done); });
}

void print_stats(const model::GenerationStats& stats, model::StopReason reason) {
  std::cerr << "prompt         " << stats.prompt_tokens << " tokens, "
            << print_fixed(stats.prefill_tokens_per_second, 1) << " tokens/s\n"
            << "first token    " << print_seconds(stats.first_token_seconds) << "\n"
            << "new            " << stats.new_tokens << " tokens, "
            << print_fixed(stats.decode_tokens_per_second, 1) << " tokens/s\n"
            << "keys, values   " << print_quantity(static_cast<double>(stats.kv_bytes), "B") << "\n"
            << "stopped by     " << name_of(reason) << "\n";
}

nlohmann::ordered_json generation_json(const model::Generation& generation, const std::string& path,
                                       const std::string& recipe) {
  const auto& stats = generation.stats;
  return {{"model", path},
          {"recipe", recipe},
          {"text", generation.text},
          {"tokens", generation.tokens},
          {"reason", name_of(generation.reason)},
          {"prompt_tokens", stats.prompt_tokens},
          {"new_tokens", stats.new_tokens},
          {"first_token_seconds", stats.first_token_seconds},
          {"prefill_tokens_per_second", stats.prefill_tokens_per_second},
          {"decode_tokens_per_second", stats.decode_tokens_per_second},
          {"kv_bytes", stats.kv_bytes}};
}

void run_generate(const GenerateArguments& arguments) {
  const auto sampler = sampler_options(arguments);
  const auto recipe = model::Recipe::parse(arguments.recipe);
  const int64_t tokens = parse_length(arguments.tokens, "--tokens");
  model::SessionOptions session_options;
  if (!arguments.context.empty()) session_options.context = parse_length(arguments.context, "--context");
  prompt_text(arguments);  // an unreadable file is reported before a model is loaded
  arguments.threads.apply();
  const std::string path = resolve_model(arguments.model).string();
  const auto model = load_model(path);
  const auto prompt = prompt_tokens(arguments, *model);
  const auto length = static_cast<int64_t>(prompt.size());
  model::Session session(model, recipe, session_options);

  const int64_t chunks = (length + session.chunk() - 1) / session.chunk();
  Progress progress("reading " + std::to_string(length) + " tokens", chunks * model->config().layers);
  show_progress(session, progress);
  const auto generation = model::generate(
      session, prompt, tokens, sampler,
      [&](std::string_view piece) {
        progress.finish();
        if (!arguments.json) std::cout << piece << std::flush;
        return true;
      },
      arguments.ignore_end);
  if (arguments.json) {
    std::cout << generation_json(generation, path, recipe.to_string())
                     .dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace)
              << "\n";
    return;
  }
  std::cout << std::endl;
  if (arguments.stats) print_stats(generation.stats, generation.reason);
}

void add_sampler_flags(CLI::App& parser, GenerateArguments& arguments) {
  const auto infos = options::describe<model::SamplerOptions>();
  arguments.sampler.resize(infos.size());
  for (size_t i = 0; i < infos.size(); ++i)
    parser
        .add_option(flag_of(infos[i].name), arguments.sampler[i],
                    infos[i].help + " (default " + infos[i].default_value +
                        (infos[i].range.empty() ? "" : ", range " + infos[i].range) + ")")
        ->type_name(infos[i].type == "int" ? "N" : "X");
}

}  // namespace

Command add_generate(CLI::App& program) {
  auto arguments = std::make_shared<GenerateArguments>();
  CLI::App* parser =
      program.add_subcommand("generate", "Continues a prompt with a language model, streamed.");
  parser
      ->add_option(
          "-m,--model", arguments->model,
          "path of a GGUF file or a model folder, or a name of `fovea models`; the default model when\n"
          "left out")
      ->type_name("MODEL");
  parser->add_option("-p,--prompt", arguments->prompt, "the prompt")->type_name("TEXT");
  parser->add_option("--file", arguments->file, "a text file to read before the prompt")->type_name("FILE");
  parser->add_option("--system", arguments->system, "the system message of a chat")->type_name("TEXT");
  CLI::Option* chat = parser->add_flag("--chat", arguments->chat,
                                       "as a user's message (default where the model has a template)");
  parser->add_flag("--raw", arguments->raw, "as plain text to continue")->excludes(chat);
  parser->add_flag("--ignore-end", arguments->ignore_end, "go on past tokens that end the text, up to -n");
  parser->add_option("--recipe", arguments->recipe, "how to attend (default exact)")->type_name("RECIPE");
  parser->add_option("-n,--tokens", arguments->tokens, "new tokens at most (default 256)")->type_name("N");
  parser->add_option("--context", arguments->context, "tokens to make room for (default: the model's own)")
      ->type_name("N");
  add_sampler_flags(*parser, *arguments);
  arguments->threads.add_to(*parser);
  parser->add_flag("--stats", arguments->stats, "speeds and bytes, on stderr after the text");
  parser->add_flag("--json", arguments->json, "one object on stdout, text and speeds, not streamed");
  parser->footer(
      "Examples:\n"
      "  fovea generate -p \"Why is the sky blue?\" -n 100\n"
      "  fovea generate --file book.txt -p \"Who is the narrator?\" --recipe \"minference; "
      "cache=quest:budget=512\" "
      "--stats");
  return {parser, [arguments] { run_generate(*arguments); }};
}

}  // namespace fovea::cli
