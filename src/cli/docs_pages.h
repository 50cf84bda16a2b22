// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <string>

namespace fovea::cli {

/// The generated pages of docs/, as Markdown.
std::string operators_page();
/// `figures`: {"NUMBER": {"figure": text, "command": text}} by paper.
std::string papers_page(const nlohmann::json& figures);
std::string cli_page(const CLI::App& program);

}  // namespace fovea::cli
