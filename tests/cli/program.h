// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

/// Running the program `fovea` as a user would.
namespace fovea::test {

namespace fs = std::filesystem;

inline std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void write_file(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

/// A fresh folder, removed at the end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (fs::temp_directory_path() / "fovea-cli-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  std::string path() const { return path_.string(); }
  /// Names and sizes of everything inside, sorted.
  std::vector<std::string> listing() const {
    std::vector<std::string> entries;
    for (const auto& entry : fs::recursive_directory_iterator(path_)) {
      std::string text = entry.path().string();
      if (entry.is_regular_file()) text += " " + std::to_string(entry.file_size());
      entries.push_back(text);
    }
    std::sort(entries.begin(), entries.end());
    return entries;
  }

 private:
  fs::path path_;
};

struct Outcome {
  int status = -1;  ///< exit status, or 128 + signal
  std::string out, err;
  int64_t peak_resident_bytes = 0;

  nlohmann::json json() const { return nlohmann::json::parse(out); }
};

using Variables = std::vector<std::pair<std::string, std::string>>;

/// Runs `fovea ARGUMENTS` to its end, with `variables` on top of the environment and stdin empty.
inline Outcome run_fovea(const std::vector<std::string>& arguments, const Variables& variables = {}) {
  const TemporaryFolder scratch;
  std::vector<char*> argv;
  std::string program = FOVEA_PROGRAM;
  argv.push_back(program.data());
  std::vector<std::string> copies = arguments;
  for (auto& argument : copies) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const std::string out = scratch / "out", err = scratch / "err";

  const pid_t child = fork();
  if (child == 0) {
    for (const auto& [name, value] : variables) setenv(name.c_str(), value.c_str(), 1);
    dup2(open("/dev/null", O_RDONLY), STDIN_FILENO);
    dup2(open(out.c_str(), O_WRONLY | O_CREAT, 0600), STDOUT_FILENO);
    dup2(open(err.c_str(), O_WRONLY | O_CREAT, 0600), STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
  int state = 0;
  rusage usage{};
  wait4(child, &state, 0, &usage);
  Outcome outcome;
  outcome.status = WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state);
  outcome.out = read_file(out);
  outcome.err = read_file(err);
  outcome.peak_resident_bytes = int64_t{usage.ru_maxrss} * 1024;
  return outcome;
}

/// Runs and expects exit status 0.
inline Outcome run_well(const std::vector<std::string>& arguments, const Variables& variables = {}) {
  Outcome outcome = run_fovea(arguments, variables);
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  return outcome;
}

}  // namespace fovea::test
