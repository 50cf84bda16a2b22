// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fovea/core/tensor.h"
#include "fovea/kernels/key_plan.h"

namespace fovea::inference {

/// Pictures of what heads attend to, small enough to look at: `size` x `size` cells for every layer and head,
/// one value 0..15 a cell, layer by layer, head by head, row by row.
struct AttentionMaps {
  struct Plan {
    std::string recipe;
    std::vector<uint8_t> cells;   ///< 0 nothing read .. 15 every key of the cell
    std::vector<double> density;  ///< [layers * heads]
    std::vector<double> recall;   ///< [layers * heads]
  };
  int64_t length = 0, layers = 0, heads = 0, size = 0;
  std::vector<uint8_t>
      attention;  ///< 15 + 1.5 log2(probability on the cell, mean over sampled rows), at least 0
  std::vector<Plan> plans;
};

/// Cells of the causal attention of q [1,Hq,T,D] and k [1,Hkv,T,D]: every cell row is the mean over a few
/// rows of it. Appends Hq * size * size values. Memory: a few rows of scores, never T x T.
void append_attention_cells(const Tensor& q, const Tensor& k, int64_t size, std::vector<uint8_t>& cells);

/// Cells of a plan of one batch row; shared heads are repeated up to heads_q. Appends heads_q * size * size
/// values.
void append_plan_cells(const kernels::KeyPlan& plan, int64_t heads_q, int64_t size,
                       std::vector<uint8_t>& cells);

}  // namespace fovea::inference
