// SPDX-License-Identifier: Apache-2.0
#include <iostream>
#include <optional>

#include "cli/catalogue_json.h"
#include "cli/command.h"
#include "cli/table.h"
#include "cli/terminal.h"
#include "fovea/core/catalogue.h"

namespace fovea::cli {
namespace {

struct ListArguments {
  std::string room;
  std::optional<int> paper;
  bool json = false, names = false;
};

std::optional<Room> room_named(const std::string& name) {
  for (int i = 0; i <= static_cast<int>(Room::study); ++i)
    if (name_of(static_cast<Room>(i)) == name) return static_cast<Room>(i);
  return {};
}

std::vector<const Operator*> selected(const ListArguments& arguments) {
  std::optional<Room> room;
  if (!arguments.room.empty()) {
    room = room_named(arguments.room);
    std::vector<std::string> names;
    for (int i = 0; i <= static_cast<int>(Room::study); ++i)
      names.emplace_back(name_of(static_cast<Room>(i)));
    if (!room)
      throw Error("--room: no room is called '" + arguments.room + "'; there are " + join(names, ", "),
                  ErrorCode::not_found);
  }
  if (arguments.paper && find_paper(*arguments.paper) == nullptr)
    throw Error("--paper: there is no paper " + std::to_string(*arguments.paper) +
                    "; papers are numbered 1 to " + std::to_string(papers().back().number),
                ErrorCode::not_found);
  std::vector<const Operator*> result;
  for (const auto& op : catalogue().all())
    if ((!room || op->room == *room) && (!arguments.paper || op->paper == *arguments.paper))
      result.push_back(op.get());
  return result;
}

void run_list(const ListArguments& arguments) {
  const auto operators = selected(arguments);
  if (arguments.json) {
    auto result = nlohmann::ordered_json::array();
    for (const Operator* op : operators) result.push_back(summary_json(*op));
    std::cout << result.dump(2) << "\n";
    return;
  }
  if (arguments.names) {
    for (const Operator* op : operators) std::cout << op->name << "\n";
    return;
  }
  Table table({{"OPERATOR"}, {"ROOM"}, {"PAPER", true}, {"FORMS"}, {"DEVICES"}, {"SUMMARY"}});
  for (const Operator* op : operators)
    table.add({op->name, std::string(name_of(op->room)), std::to_string(op->paper),
               join(form_names(*op), ","), join(device_names(*op), ","), op->summary});
  std::cout << table.to_string(terminal_width());
  std::cout << operators.size() << (operators.size() == 1 ? " operator" : " operators") << "\n";
}

}  // namespace

Command add_list(CLI::App& program) {
  auto arguments = std::make_shared<ListArguments>();
  CLI::App* parser = program.add_subcommand("list", "The catalogue: operator, room, paper, forms, devices.");
  parser->add_option("--room", arguments->room, "only this family (dense, sparse, linear, cache, ...)")
      ->type_name("ROOM");
  parser->add_option("--paper", arguments->paper, "only this paper (Fovea's number, see docs/papers.md)")
      ->type_name("N");
  CLI::Option* json = parser->add_flag("--json", arguments->json, "an array of objects on stdout");
  parser->add_flag("--names", arguments->names, "names only, one a line")->excludes(json);
  parser->footer("Examples:\n  fovea list --room cache\n  fovea list --paper 92 --json");
  return {parser, [arguments] { run_list(*arguments); }};
}

}  // namespace fovea::cli
