// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fovea/core/tensor.h"

namespace fovea::model {

/// How a model stretches its rotary embedding beyond the context it was trained on.
struct RopeScaling {
  enum class Kind { none, linear, ntk, dynamic, yarn, llama3 };

  Kind kind = Kind::none;
  double factor = 1;            ///< context now / context in training
  double original_context = 0;  ///< tokens of the training context: dynamic, yarn, llama3
  double low_frequency_factor = 1,
         high_frequency_factor = 4;      ///< llama3: where interpolation ends and starts
  double beta_fast = 32, beta_slow = 1;  ///< yarn: rotations over the training context, ends of the ramp
  bool whole_channels = true;            ///< yarn: the ends of the ramp are rounded outwards
  double magnitude = 0;                  ///< yarn: factor of cosines and sines; 0 means 0.1 ln(factor) + 1
  /// Divides every frequency after the rule above: [R/2], or empty (the `rope_freqs` tensor of GGUF).
  std::vector<float> divisors;
};

/// The kind of the name used by config files: "default", "none", "linear", "ntk", "dynamic", "yarn",
/// "llama3". Throws Error for others; `origin` names the file.
RopeScaling::Kind parse_rope_scaling(const std::string& name, const std::string& origin);

/// Per-pair frequencies [R/2] f32 and the factor of cosines and sines.
struct Rope {
  Tensor frequencies;
  float magnitude = 1;
};

/// The rotary embedding of `rotated` channels with base `theta`. `context` is the length the session will
/// reach: dynamic scaling depends on it, and is fixed for a session so that cached keys stay comparable.
Rope make_rope(const RopeScaling& scaling, int64_t rotated, double theta, int64_t context);

}  // namespace fovea::model
