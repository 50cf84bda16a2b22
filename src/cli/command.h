// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <vector>

namespace fovea::cli {

/// One subcommand: its parser (child of the program's) and what it does once everything is parsed.
struct Command {
  CLI::App* parser;
  std::function<void()> run;
};

/// Each of these lives in command_NAME.cc; main.cc lists them.
Command add_list(CLI::App& program);
Command add_show(CLI::App& program);
Command add_run(CLI::App& program);
Command add_bench(CLI::App& program);
Command add_generate(CLI::App& program);
Command add_info(CLI::App& program);
Command add_models(CLI::App& program);
Command add_compare(CLI::App& program);
Command add_completion(CLI::App& program);
Command add_docs(CLI::App& program);

/// Every subcommand of the program, in the order `fovea --help` shows them.
std::vector<Command> add_commands(CLI::App& program);

}  // namespace fovea::cli
