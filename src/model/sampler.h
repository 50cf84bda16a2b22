// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "fovea/core/options.h"
#include "fovea/core/rng.h"
#include "fovea/core/tensor.h"

namespace fovea::model {

/// How the next token is drawn. The filters apply in the order of the fields.
struct SamplerOptions {
  double repetition_penalty = 1;
  int64_t repetition_window = 64;
  double temperature = 0;
  double min_p = 0;
  int64_t top_k = 0;
  double top_p = 1;
  int64_t seed = 0;

  static constexpr auto fields() {
    using options::field;
    return options::list(
        field(&SamplerOptions::repetition_penalty, "repetition_penalty",
              "divides the positive logits of recent tokens, multiplies the negative ones; 1 is off",
              options::above(0)),
        field(&SamplerOptions::repetition_window, "repetition_window", "tokens that count as recent",
              options::at_least(0)),
        field(&SamplerOptions::temperature, "temperature",
              "divides the logits; 0 takes the most likely token", options::at_least(0)),
        field(&SamplerOptions::min_p, "min_p",
              "drop tokens less likely than this share of the most likely one", options::between(0, 1)),
        field(&SamplerOptions::top_k, "top_k", "draw among this many most likely tokens; 0 is all",
              options::at_least(0)),
        field(&SamplerOptions::top_p, "top_p",
              "draw among the fewest tokens whose probabilities reach this sum", options::above_up_to(0, 1)),
        field(&SamplerOptions::seed, "seed", "of the random numbers: the same seed draws the same text"));
  }
};

/// Draws tokens from logits. Equal logits: the lower id first, so that results do not depend on the machine.
class Sampler {
 public:
  explicit Sampler(const SamplerOptions& options = {});

  /// The next token by `logits` [V] f32; `history` are the tokens before it, newest last. Throws Error when
  /// no logit is a number above -inf.
  int32_t sample(const Tensor& logits, std::span<const int32_t> history);

 private:
  SamplerOptions options_;
  Rng rng_;
  std::vector<float> logits_;
  std::vector<int32_t> order_;
  std::vector<double> probabilities_;
};

}  // namespace fovea::model
