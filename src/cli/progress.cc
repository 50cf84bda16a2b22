// SPDX-License-Identifier: Apache-2.0
#include "cli/progress.h"

#include <algorithm>
#include <iostream>

#include "cli/terminal.h"

namespace fovea::cli {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kQuietStart = std::chrono::milliseconds(400);
constexpr auto kRedraw = std::chrono::milliseconds(80);
constexpr int64_t kBar = 24;

}  // namespace

Progress::Progress(std::string label, int64_t total)
    : label_(std::move(label)),
      total_(std::max<int64_t>(1, total)),
      visible_(stderr_is_terminal()),
      begin_(Clock::now()),
      last_(begin_) {}

Progress::~Progress() { finish(); }

void Progress::finish() {
  if (drawn_) std::cerr << "\r\033[K" << std::flush;
  drawn_ = visible_ = false;
}

void Progress::update(int64_t done, std::string label) {
  label_ = std::move(label);
  update(done);
}

void Progress::update(int64_t done) {
  const auto now = Clock::now();
  if (!visible_ || now - begin_ < kQuietStart || (drawn_ && now - last_ < kRedraw)) return;
  last_ = now;
  drawn_ = true;
  const int64_t filled = std::clamp<int64_t>(kBar * done / total_, 0, kBar);
  std::cerr << "\r\033[K" << label_ << " [" << std::string(static_cast<size_t>(filled), '=')
            << std::string(static_cast<size_t>(kBar - filled), ' ') << "] " << done << "/" << total_
            << std::flush;
}

}  // namespace fovea::cli
