// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "fovea/core/device.h"
#include "fovea/core/options.h"

/// Arguments that several commands share.
namespace fovea::cli {

/// --threads N. apply() sets the thread pool: the flag, else FOVEA_THREADS, else one per core.
struct ThreadsArgument {
  int threads = 0;
  void add_to(CLI::App& parser);
  void apply() const;
};

/// --device cpu|cuda. device() refuses what this build does not have.
struct DeviceArgument {
  std::string text = "cpu";
  void add_to(CLI::App& parser);
  Device device() const;
};

/// --set key=value, repeatable.
struct SetArgument {
  std::vector<std::string> texts;
  void add_to(CLI::App& parser);
  options::Pairs pairs() const;
};

/// "1k,8k,64k" -> 1024, 8192, 65536. `flag` names the argument in errors.
std::vector<int64_t> parse_lengths(const std::string& text, const std::string& flag);
/// A positive integer, with an optional k or m suffix (1024, 1024^2).
int64_t parse_length(const std::string& text, const std::string& flag);
/// "32/8" -> (32, 8); "32" -> (32, 32).
std::pair<int64_t, int64_t> parse_pair(const std::string& text, const std::string& flag);

/// Devices this build and machine can use.
std::vector<std::string> available_devices();

}  // namespace fovea::cli
