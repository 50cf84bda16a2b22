// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "fovea/kernels/attention.h"

namespace fovea::sparse {

/// Positions begin, begin + step, ... below end.
struct Progression {
  int64_t begin = 0, end = 0, step = 1;
  Tensor of(const Tensor& x) const { return x.slice(2, begin, end, step); }
  bool empty() const { return begin >= end; }
};

/// One small attention problem inside a larger one: some rows of some heads over some keys. Within the part
/// the last row is aligned with the last key, as in every call.
struct AttentionPart {
  int64_t head_begin = 0, head_end = 0;  ///< query heads: all of them, or one
  Progression rows, keys;
  kernels::Visibility visible;
  std::optional<std::vector<int32_t>> columns;  ///< of the part's keys; empty optional: all
};

/// Parts whose (head, row) sets do not overlap. Rows without a part see nothing in this layer.
using AttentionLayer = std::vector<AttentionPart>;

/// A static pattern whose key sets are disjoint across layers: each layer runs its parts as dense problems on
/// strided views, and the layers merge by lse.
kernels::AttentionResult attend_layers(const Tensor& q, const Tensor& k, const Tensor& v,
                                       const std::vector<AttentionLayer>& layers);

/// Gradients of attend_layers: every part is differentiated against the merged o and lse. Deterministic.
kernels::AttentionGradients attend_layers_backward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                   const Tensor& d_o,
                                                   const std::vector<AttentionLayer>& layers);

}  // namespace fovea::sparse
