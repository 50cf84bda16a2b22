// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/attention_args.h"

/// Checked arguments of the linear scan, as pointers, strides in elements and sizes. Internal.
namespace fovea::kernels {

enum class Decay { none, head, token, channel };

/// Absent options are null.
struct LinearScanArgs {
  int64_t batch = 0, heads_q = 0, heads_kv = 0, length = 0, dim = 0, dim_v = 0;
  View q, k, v;  ///< q is null where only the state is wanted
  float scale = 1;
  bool delta = false;
  Decay decay = Decay::none;
  View log_decay;  ///< [batch, head, token, channel], repeating where the decay does not depend on the axis
  View beta;       ///< [batch, head, token]
  View state;      ///< [batch, head, D, Dv]
  int64_t chunk = 0;

  int64_t group() const { return heads_kv > 0 ? heads_q / heads_kv : 0; }
};

}  // namespace fovea::kernels
