// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "kernels/attention_args.h"

namespace fovea::kernels::cpu {

/// A checked problem and where its results go.
struct ForwardProblem {
  AttentionArgs args;
  const KeyPlan* plan = nullptr;  ///< null: all keys
  View o = {};                    ///< normalised result; unless `sum` is set, then sum_j 2^(s_j - max) v_j
  float* lse = nullptr;           ///< [batch, head, query] with strides lse_batch, lse_head, 1
  int64_t lse_batch = 0, lse_head = 0;
  float* sum = nullptr;  ///< laid out like lse: sum_j exp(s_j - max); lse then receives the maximum
};

/// Runs all problems as one list of parallel tasks.
void run_forward(std::span<const ForwardProblem> problems);

/// Are there so few keys, all of them read by many rows, that run_short_forward is faster?
bool is_short(const ForwardProblem& problem);
/// What run_forward does, for problems that are short.
void run_short_forward(std::span<const ForwardProblem> problems);

}  // namespace fovea::kernels::cpu
