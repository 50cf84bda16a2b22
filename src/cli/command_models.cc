// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/environment.h"
#include "cli/table.h"
#include "cli/terminal.h"
#include "fovea/model/model_files.h"

namespace fovea::cli {
namespace {

constexpr const char* kFetch =
    "`./run model` in a checkout of Fovea fetches the default model; `./run demo` does and compares recipes "
    "on "
    "it.";

nlohmann::ordered_json models_json(const std::vector<model::LocalModel>& models) {
  const auto& standard = model::kDefaultModel;
  const bool present = std::any_of(models.begin(), models.end(),
                                   [&](const auto& model) { return model.path.ends_with(standard.file); });
  nlohmann::ordered_json result = {{"folder", environment().models.string()},
                                   {"models", nlohmann::ordered_json::array()},
                                   {"default",
                                    {{"name", standard.name},
                                     {"file", standard.file},
                                     {"present", present},
                                     {"bytes", standard.bytes},
                                     {"sha256", standard.sha256},
                                     {"package", standard.package},
                                     {"version", standard.version}}},
                                   {"fetch", kFetch}};
  for (const auto& model : models)
    result["models"].push_back({{"name", model.name}, {"path", model.path}, {"bytes", model.bytes}});
  return result;
}

void run_models(bool json) {
  const std::string folder = environment().models.string();
  const auto models = model::list_models(folder);
  if (json) {
    std::cout << models_json(models).dump(2) << "\n";
    return;
  }
  std::cout << "Models in " << folder << (models.empty() ? ": none\n" : "\n");
  if (!models.empty()) {
    Table table({{"  NAME"}, {"SIZE", true}, {"PATH"}});
    for (const auto& model : models)
      table.add({"  " + model.name, print_quantity(static_cast<double>(model.bytes), "B"), model.path});
    std::cout << table.to_string(terminal_width());
  }
  std::cout << "\nThe default model is " << model::kDefaultModel.name << ".\n"
            << kFetch << "\nAny command with -m also takes the path of a GGUF file or of a folder with "
            << "safetensors weights.\n";
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
