// SPDX-License-Identifier: Apache-2.0
#include "cli/interrupts.h"

#include <array>
#include <csignal>

namespace fovea::cli {
namespace {

constexpr std::array<int, 3> kSignals = {SIGINT, SIGTERM, SIGHUP};
volatile std::sig_atomic_t pending = 0;
std::array<struct sigaction, kSignals.size()> previous;

void remember(int signal) { pending = signal; }

}  // namespace

DeferInterrupts::DeferInterrupts() {
  struct sigaction action {};
  action.sa_handler = remember;
  for (size_t i = 0; i < kSignals.size(); ++i) {
    sigaction(kSignals[i], nullptr, &previous[i]);
    // A signal that the parent chose to ignore (nohup) stays ignored.
    if (previous[i].sa_handler != SIG_IGN) sigaction(kSignals[i], &action, nullptr);
  }
}

DeferInterrupts::~DeferInterrupts() {
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &previous[i], nullptr);
  if (pending != 0) std::raise(pending);
}

}  // namespace fovea::cli
