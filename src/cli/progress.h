// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace fovea::cli {

/// One line on stderr that is redrawn as work proceeds, and cleared at the end. Silent unless stderr is a
/// terminal, and for the first moments, so that short work shows nothing.
class Progress {
 public:
  Progress(std::string label, int64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void update(int64_t done);
  void update(int64_t done, std::string label);
  /// Clears the line; further updates draw nothing.
  void finish();

 private:
  std::string label_;
  int64_t total_;
  bool visible_, drawn_ = false;
  std::chrono::steady_clock::time_point begin_, last_;
};

}  // namespace fovea::cli
