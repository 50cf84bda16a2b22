// SPDX-License-Identifier: Apache-2.0
#include <filesystem>

#include "cli/command.h"
#include "cli/docs_pages.h"
#include "fovea/core/error.h"
#include "fovea/io/file.h"

namespace fovea::cli {
namespace {

namespace fs = std::filesystem;

nlohmann::json read_figures(const fs::path& path, bool required) {
  std::error_code trouble;
  if (!required && !fs::exists(path, trouble)) return nlohmann::json::object();
  auto figures = nlohmann::json::parse(io::read_text(path.string()), nullptr, false);
  require(figures.is_object(), "figures '", path.string(), "' is not a JSON object");
  for (const auto& [paper, figure] : figures.items())
    require(figure.is_object(), "figures '", path.string(), "': the entry of paper ", paper,
            " is not an object");
  return figures;
}

void write_page(const fs::path& path, const std::string& text) {
  io::AtomicFile file(path.string());
  file.write(text.data(), text.size());
  file.commit();
}

}  // namespace

Command add_docs(CLI::App& program) {
  struct Arguments {
    std::string output, figures;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* parser =
      program.add_subcommand("docs", "Writes the generated reference pages from the catalogue.");
  parser
      ->add_option("--output", arguments->output,
                   "an existing folder: operators.md, papers.md, cli.md go there")
      ->type_name("FOLDER")
      ->required();
  parser
      ->add_option("--figures", arguments->figures,
                   "measured figures by paper (default: figures.json in the output folder)")
      ->type_name("FILE");
  return {parser, [arguments, &program] {
            const fs::path folder = arguments->output;
            require(fs::is_directory(folder), "--output '", arguments->output, "' is not a folder");
            const bool given = !arguments->figures.empty();
            const auto figures =
                read_figures(given ? fs::path(arguments->figures) : folder / "figures.json", given);
            write_page(folder / "operators.md", operators_page());
            write_page(folder / "papers.md", papers_page(figures));
            write_page(folder / "cli.md", cli_page(program));
          }};
}

}  // namespace fovea::cli
