// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace fovea::cli {

/// Something that is run again and again, and what its runs took.
struct Timed {
  std::function<void()> run;
  std::function<void()> before = {};  ///< not timed; may be empty
  std::vector<double> seconds = {};
  int64_t scratch_bytes = 0;  ///< peak of the last run beyond what it left behind

  void once();
  double median() const;
};

/// Runs `subject` until its median is steady (or `repeat` times, if > 0), after one run to warm up. With an
/// `other` the two take turns, so that a busy machine slows both and their ratio holds.
void measure(Timed& subject, Timed* other, int repeat);

}  // namespace fovea::cli
