// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace fovea::cli {

/// While alive, Ctrl-C and termination wait: a file being written is finished or removed, never left as a
/// temporary. The signal takes effect when the last of these ends.
class DeferInterrupts {
 public:
  DeferInterrupts();
  ~DeferInterrupts();
  DeferInterrupts(const DeferInterrupts&) = delete;
  DeferInterrupts& operator=(const DeferInterrupts&) = delete;
};

}  // namespace fovea::cli
