// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "cli/program.h"
#include "fovea/core/papers.h"

namespace fovea::test {
namespace {

const fs::path kDocs = fs::path(FOVEA_SOURCE_DIR) / "docs";

TEST(Docs, GeneratedPagesAreUpToDate) {
  const TemporaryFolder folder;
  run_well({"docs", "--output", folder.path(), "--figures", (kDocs / "figures.json").string()});
  for (const char* page : {"operators.md", "papers.md", "cli.md"})
    EXPECT_TRUE(read_file(folder / page) == read_file(kDocs / page))
        << "docs/" << page << " is stale: build the target `docs`, or run `fovea docs --output docs`";
}

TEST(Docs, EveryPaperHasARowAndEveryFigureItsCommand) {
  const std::string page = read_file(kDocs / "papers.md");
  for (const auto& paper : papers())
    EXPECT_NE(page.find("| " + std::to_string(paper.number) + " | "), std::string::npos) << paper.number;
  const auto figures = nlohmann::json::parse(read_file(kDocs / "figures.json"));
  for (const auto& [paper, figure] : figures.items()) {
    EXPECT_NE(find_paper(std::stoi(paper)), nullptr) << paper;
    EXPECT_NE(figure.at("figure"), "") << paper;
    EXPECT_NE(figure.at("command"), "") << paper;
  }
}

}  // namespace
}  // namespace fovea::test
