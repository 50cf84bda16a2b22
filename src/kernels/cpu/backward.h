// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/attention_args.h"

namespace fovea::kernels::cpu {

/// A checked problem with the forward's results, and where its gradients go.
struct BackwardProblem {
  AttentionArgs args;
  const KeyPlan* plan = nullptr;  ///< null: all keys
  View o, d_o;
  const float *lse = nullptr, *d_lse = nullptr;  ///< [B,Hq,Tq] contiguous; d_lse may be null
  View dq, dk, dv;
  float* dsink = nullptr;  ///< [Hq], with a sink
  View dbias;              ///< shaped like bias and filled with zeros; stride 0 where it is summed
};

void run_backward(const BackwardProblem& problem);

}  // namespace fovea::kernels::cpu
