// SPDX-License-Identifier: Apache-2.0
#include <csignal>
#include <iostream>

#include "cli/command.h"
#include "cli/environment.h"
#include "cli/errors.h"
#include "fovea/core/catalogue.h"
#include "fovea/kernels/target.h"

namespace fovea::cli {
namespace {

constexpr const char* kHelp =
    "One engine for every kind of attention: published mechanisms as uniform operators, measured against "
    "exact\n"
    "attention.";
constexpr const char* kExamples =
    "Examples:\n"
    "  fovea list --room sparse                    operators that read a part of the keys\n"
    "  fovea show minference                       its inputs, outputs and options\n"
    "  fovea run quest in.safetensors -o out.safetensors --set token_budget=512\n"
    "  fovea bench flash-attention minference --length 8k,32k --heads 32/8 --dim 128 --causal\n"
    "  fovea info --roofline                       what this machine can do\n"
    "\n"
    "`fovea COMMAND --help` tells more about a command. Exit status: 0 done, 1 failed while running, 2 "
    "unusable\n"
    "input or arguments.";

// The word of the command line that stands where a command should, if any.
std::string first_word(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word == "--simd") ++i;
    if (!word.starts_with("-")) return std::string(word);
  }
  return "";
}

// What CLI11 found wrong, in one line.
std::string describe(const CLI::ParseError& error, const CLI::App& program, const std::string& word) {
  if (program.get_subcommands().empty() && !word.empty()) {
    std::vector<std::string> names;
    for (const CLI::App* command : program.get_subcommands([](const CLI::App*) { return true; }))
      names.push_back(command->get_name());
    const std::string near = nearest_name(word, names);
    return "there is no command '" + word + "'" +
           (near.empty() ? "; see `fovea --help`" : "; did you mean '" + near + "'?");
  }
  std::string message = error.what();
  for (char& c : message)
    if (c == '\n') c = ' ';
  return message + "; see `fovea --help`";
}

int run_program(int argc, char** argv) {
  CLI::App program(kHelp, "fovea");
  program.footer(kExamples);
  program.set_version_flag("--version", "fovea " FOVEA_VERSION);
  program.require_subcommand(1);
  std::string simd = environment().simd;
  program.add_option("--simd", simd, "force a SIMD target (`fovea info` lists them; also FOVEA_SIMD)")
      ->type_name("TARGET");
  const auto commands = add_commands(program);
  try {
    program.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return program.exit(error);
    print_error(describe(error, program, first_word(argc, argv)));
    return kUnusable;
  }
  if (!simd.empty()) kernels::force_simd_target(simd);
  for (const auto& command : commands)
    if (command.parser->parsed()) command.run();
  if (!std::cout.flush()) throw RunError("cannot write to stdout");
  return kDone;
}

}  // namespace

std::vector<Command> add_commands(CLI::App& program) {
  std::vector<Command> commands = {add_list(program),  add_show(program),    add_run(program),
                                   add_bench(program), add_compare(program), add_generate(program),
                                   add_info(program),  add_models(program),  add_completion(program),
                                   add_docs(program)};
  for (const auto& command : commands) command.parser->fallthrough();
  return commands;
}

}  // namespace fovea::cli

int main(int argc, char** argv) {
  // A file size limit then is an error of write(), which cleans up, and not a death in the middle of a file.
  std::signal(SIGXFSZ, SIG_IGN);
  try {
    return fovea::cli::run_program(argc, argv);
  } catch (const std::exception& error) {
    return fovea::cli::report(error);
  }
}
