// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <vector>

#include "kernels/attention_args.h"

namespace fovea::kernels::cpu {

/// Part n of a merge: o as a view, lse contiguous [batch, head, query].
struct MergePart {
  View o;
  const float* lse;
};

struct MergeProblem {
  std::vector<MergePart> parts;
  View o;
  float* lse;
  int64_t batch, heads, queries, dim_v;
};

void run_merge(const MergeProblem& problem);

}  // namespace fovea::kernels::cpu
