// SPDX-License-Identifier: Apache-2.0
#include "fovea/inference/attention_map.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "fovea/core/thread_pool.h"
#include "fovea/kernels/pooling.h"
#include "fovea/kernels/rows.h"
#include "fovea/sparse/plan.h"

namespace fovea::inference {
namespace {

constexpr int64_t kRowsPerCell = 2;
constexpr int64_t kCellsAtOnce = 16;  // scores of this many cell rows are held together

uint8_t log_level(double probability) {
  if (probability <= 0) return 0;
  return static_cast<uint8_t>(std::clamp(std::lround(15.0 + 1.5 * std::log2(probability)), 0L, 15L));
}

}  // namespace

void append_attention_cells(const Tensor& q, const Tensor& k, int64_t size, std::vector<uint8_t>& cells) {
  const int64_t heads = q.dim(1), rows = q.dim(2), keys = k.dim(2), offset = keys - rows;
  const float scale = 1.0f / std::sqrt(static_cast<float>(q.dim(3)));
  const size_t base = cells.size();
  cells.resize(base + static_cast<size_t>(heads * size * size));
  auto row_of = [&](int64_t sample) { return (2 * sample + 1) * rows / (2 * size * kRowsPerCell); };
  for (int64_t first = 0; first < size; first += kCellsAtOnce) {
    const int64_t count = std::min(kCellsAtOnce, size - first), samples = count * kRowsPerCell;
    Tensor picked = Tensor::empty({1, heads, samples, q.dim(3)});
    for (int64_t s = 0; s < samples; ++s)
      picked.select(2, s).copy_from(q.select(2, row_of(first * kRowsPerCell + s)).to(DType::f32));
    const Tensor scores = kernels::pair_scores(picked, k, scale);
    for (int64_t row = 0; row < heads * samples; ++row) {
      const int64_t visible = row_of(first * kRowsPerCell + row % samples) + offset + 1;
      float* score = scores.data<float>() + row * keys;
      std::fill(score + std::min(visible, keys), score + keys, -std::numeric_limits<float>::infinity());
    }
    const Tensor probabilities = kernels::softmax_rows(scores);
    parallel_for(heads * count, [&](int64_t task, int) {
      const int64_t head = task / count, cell_row = task % count;
      for (int64_t x = 0; x < size; ++x) {
        const int64_t begin = x * keys / size, end = (x + 1) * keys / size;
        double mass = 0;
        for (int64_t s = 0; s < kRowsPerCell; ++s) {
          const float* row =
              probabilities.data<float>() + (head * samples + cell_row * kRowsPerCell + s) * keys;
          for (int64_t j = begin; j < end; ++j) mass += static_cast<double>(row[j]);
        }
        cells[base + static_cast<size_t>((head * size + first + cell_row) * size + x)] =
            log_level(mass / kRowsPerCell);
      }
    });
  }
}

void append_plan_cells(const kernels::KeyPlan& plan, int64_t heads_q, int64_t size,
                       std::vector<uint8_t>& cells) {
  for (int64_t head = 0; head < heads_q; ++head)
    for (float share : sparse::plan_coverage(plan, 0, head * plan.heads / heads_q, size))
      cells.push_back(share <= 0 ? uint8_t{0}
                                 : static_cast<uint8_t>(std::max(1L, std::lround(15.0f * share))));
}

}  // namespace fovea::inference
