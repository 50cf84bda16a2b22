// SPDX-License-Identifier: Apache-2.0
#include <iostream>

#include "cli/command.h"
#include "cli/table.h"
#include "fovea/core/error.h"

namespace fovea::cli {
namespace {

struct CommandWords {
  std::string name, description;
  std::vector<std::string> flags;
  bool takes_operator = false;
};

std::vector<CommandWords> words_of(const CLI::App& program) {
  std::vector<CommandWords> result;
  for (const CLI::App* command : program.get_subcommands([](const CLI::App*) { return true; })) {
    CommandWords words{command->get_name(), command->get_description(), {}, false};
    for (const CLI::Option* option : command->get_options()) {
      for (const auto& flag : option->get_lnames()) words.flags.push_back("--" + flag);
      for (const auto& flag : option->get_snames()) words.flags.push_back("-" + flag);
      words.takes_operator = words.takes_operator || option->get_name(true) == "OPERATOR";
    }
    result.push_back(std::move(words));
  }
  return result;
}

std::vector<std::string> names_of(const std::vector<CommandWords>& commands, bool operators_only) {
  std::vector<std::string> names;
  for (const auto& command : commands)
    if (!operators_only || command.takes_operator) names.push_back(command.name);
  return names;
}

// Inside single quotes of fish.
std::string quoted(const std::string& text) {
  std::string result;
  for (char c : text) result += (c == '\'' || c == '\\' ? "\\" : "") + std::string(1, c);
  return "'" + result + "'";
}

void print_bash(const std::vector<CommandWords>& commands) {
  std::cout << "# bash completion for fovea: source <(fovea completion bash)\n"
               "_fovea() {\n"
               "  local current=\"${COMP_WORDS[COMP_CWORD]}\" command=\"${COMP_WORDS[1]}\" words=\"\"\n"
               "  if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
               "    words=\""
            << join(names_of(commands, false), " ")
            << " --help --version --simd\"\n"
               "  else\n"
               "    case \"$command\" in\n";
  for (const auto& command : commands)
    std::cout << "      " << command.name << ") words=\"" << join(command.flags, " ") << "\" ;;\n";
  std::cout << "    esac\n"
               "    case \"$command\" in\n"
               "      "
            << join(names_of(commands, true), "|")
            << ") words=\"$words $(fovea list --names 2>/dev/null)\" ;;\n"
               "    esac\n"
               "  fi\n"
               "  COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
               "}\n"
               "complete -o default -F _fovea fovea\n";
}

void print_zsh(const std::vector<CommandWords>& commands) {
  std::cout << "#compdef fovea\n"
               "# zsh completion for fovea: fovea completion zsh > \"${fpath[1]}/_fovea\"\n"
               "_fovea() {\n"
               "  if (( CURRENT == 2 )); then\n"
               "    compadd -- "
            << join(names_of(commands, false), " ")
            << " --help --version --simd\n"
               "    return\n"
               "  fi\n"
               "  case \"$words[2]\" in\n";
  for (const auto& command : commands)
    std::cout << "    " << command.name << ") compadd -- " << join(command.flags, " ")
              << (command.takes_operator ? " ${(f)\"$(fovea list --names 2>/dev/null)\"}" : "") << " ;;\n";
  std::cout << "  esac\n"
               "  _files\n"
               "}\n"
               "compdef _fovea fovea\n";
}

void print_fish(const std::vector<CommandWords>& commands) {
  std::cout << "# fish completion for fovea: fovea completion fish | source\n";
  for (const auto& command : commands) {
    std::cout << "complete -c fovea -n __fish_use_subcommand -f -a " << command.name << " -d "
              << quoted(command.description) << "\n";
    const std::string seen = "complete -c fovea -n '__fish_seen_subcommand_from " + command.name + "' ";
    for (const auto& flag : command.flags)
      std::cout << seen << (flag.starts_with("--") ? "-l " + flag.substr(2) : "-s " + flag.substr(1)) << "\n";
    if (command.takes_operator) std::cout << seen << "-a '(fovea list --names 2>/dev/null)'\n";
  }
}

}  // namespace

Command add_completion(CLI::App& program) {
  auto shell = std::make_shared<std::string>();
  CLI::App* parser =
      program.add_subcommand("completion", "A completion script for bash, zsh or fish, on stdout.");
  parser->add_option("SHELL", *shell, "bash, zsh or fish")->required();
  parser->footer("Example:\n  source <(fovea completion bash)");
  return {parser, [shell, &program] {
            const auto commands = words_of(program);
            if (*shell == "bash")
              print_bash(commands);
            else if (*shell == "zsh")
              print_zsh(commands);
            else if (*shell == "fish")
              print_fish(commands);
            else
              throw Error("completion: no script for shell '" + *shell + "'; there are bash, zsh and fish");
          }};
}

}  // namespace fovea::cli
