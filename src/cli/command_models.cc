// SPDX-License-Identifier: Apache-2.0
#include <iostream>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/environment.h"
#include "cli/models.h"
#include "cli/table.h"
#include "cli/terminal.h"

namespace fovea::cli {
namespace {

constexpr const char* kFetch =
    "`./run model` in a checkout of Fovea fetches the default model; `./run demo` does and compares recipes "
    "on it.";

void run_models(bool json) {
  const auto models = local_models();
  const std::string folder = environment().models.string();
  if (json) {
    nlohmann::ordered_json result = {
        {"folder", folder}, {"models", nlohmann::ordered_json::array()}, {"fetch", kFetch}};
    for (const auto& model : models)
      result["models"].push_back(
          {{"name", model.name}, {"path", model.path.string()}, {"bytes", model.bytes}});
    std::cout << result.dump(2) << "\n";
    return;
  }
  std::cout << "Models in " << folder << (models.empty() ? ": none\n" : "\n");
  if (!models.empty()) {
    Table table({{"  NAME"}, {"SIZE", true}, {"PATH"}});
    for (const auto& model : models)
      table.add(
          {"  " + model.name, print_quantity(static_cast<double>(model.bytes), "B"), model.path.string()});
    std::cout << table.to_string(terminal_width());
  }
  std::cout << "\n" << kFetch << "\nAny command with -m also takes the path of a GGUF file.\n";
}

}  // namespace

Command add_models(CLI::App& program) {
  auto json = std::make_shared<bool>(false);
  CLI::App* parser =
      program.add_subcommand("models", "What is available locally, and how the default model is fetched.");
  parser->add_flag("--json", *json, "one object on stdout");
  return {parser, [json] { run_models(*json); }};
}

}  // namespace fovea::cli
