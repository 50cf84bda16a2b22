// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_timing.h"

#include <algorithm>
#include <chrono>

#include "fovea/core/memory.h"

namespace fovea::cli {
namespace {

// Five repetitions and a quarter of a second, or two seconds, whichever is reached first.
constexpr size_t kRepetitions = 5;
constexpr double kEnoughSeconds = 0.25, kMostSeconds = 2.0;

}  // namespace

void Timed::once() {
  if (before) before();
  memory::reset_peak();
  const auto begin = std::chrono::steady_clock::now();
  run();
  seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  scratch_bytes = memory::peak_bytes() - memory::current_bytes();
}

double Timed::median() const {
  std::vector<double> sorted = seconds;
  std::sort(sorted.begin(), sorted.end());
  return sorted[sorted.size() / 2];
}

void measure(Timed& subject, Timed* other, int repeat) {
  for (Timed* each : {&subject, other}) {
    if (each == nullptr) continue;
    each->once();
    each->seconds.clear();
  }
  double total = 0;
  const auto enough = [&] {
    const size_t count = subject.seconds.size();
    if (repeat > 0) return count >= static_cast<size_t>(repeat);
    return total >= kMostSeconds || (count >= kRepetitions && total >= kEnoughSeconds);
  };
  do {
    subject.once();
    total += subject.seconds.back();
    if (other == nullptr) continue;
    other->once();
    total += other->seconds.back();
  } while (!enough());
}

}  // namespace fovea::cli
