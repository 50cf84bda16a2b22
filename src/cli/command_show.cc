// SPDX-License-Identifier: Apache-2.0
#include <iostream>

#include "cli/catalogue_json.h"
#include "cli/command.h"
#include "cli/table.h"
#include "cli/terminal.h"
#include "fovea/core/catalogue.h"

namespace fovea::cli {
namespace {

std::string tensor_table(const std::vector<TensorSpec>& specs) {
  Table table({{"  NAME"}, {"SHAPE"}, {"TYPE"}, {""}});
  for (const auto& spec : specs)
    table.add({"  " + spec.name, spec.shape_text(), spec.dtype_text(), spec.optional ? "optional" : ""});
  return table.to_string(terminal_width());
}

std::string option_table(const std::vector<options::Info>& infos) {
  Table table({{"  OPTION"}, {"TYPE"}, {"DEFAULT"}, {"RANGE"}, {"MEANING"}});
  for (const auto& info : infos)
    table.add({"  " + info.name + (info.alias.empty() ? "" : " (" + info.alias + ")"), info.type,
               info.default_value, info.range, info.help});
  return table.to_string(terminal_width());
}

void print_operator(const Operator& op) {
  const Paper* paper = find_paper(op.paper);
  std::cout << op.name << ": " << op.summary << "\n\n";
  if (paper != nullptr) {
    std::cout << "Paper " << paper->number << ": " << paper->title;
    if (paper->year > 0) std::cout << ", " << paper->year;
    if (paper->arxiv[0] != '\0') std::cout << ", arXiv " << paper->arxiv;
    std::cout << "\n";
  }
  std::cout << "Room " << name_of(op.room) << "; forms " << join(form_names(op), ", ") << "; devices "
            << join(device_names(op), ", ") << "; NaN and infinity "
            << (op.nonfinite == NonFinite::refuse ? "are refused" : "propagate") << "\n";
  std::cout << "\nInputs" << (op.inputs.empty() ? ": none\n" : "\n" + tensor_table(op.inputs));
  std::cout << "\nOutputs\n" << tensor_table(op.outputs);
  std::cout << "\nOptions (--set key=value)"
            << (op.options.empty() ? ": none\n" : "\n" + option_table(op.options));
}

}  // namespace

Command add_show(CLI::App& program) {
  struct Arguments {
    std::string name;
    bool json = false;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* parser =
      program.add_subcommand("show", "An operator's inputs, outputs, and options with defaults and ranges.");
  parser->add_option("OPERATOR", arguments->name, "an operator's name")->required();
  parser->add_flag("--json", arguments->json, "one object on stdout");
  parser->footer("Example:\n  fovea show minference");
  return {parser, [arguments] {
            const Operator& op = catalogue().at(arguments->name);
            if (arguments->json)
              std::cout << operator_json(op).dump(2) << "\n";
            else
              print_operator(op);
          }};
}

}  // namespace fovea::cli
