// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <vector>

#include "fovea/core/memory.h"
#include "fovea/core/thread_pool.h"
#include "fovea/kernels/pooling.h"
#include "kernels/cpu/dense_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/strip_sums.cc"
#include "hwy/foreach_target.h"
#include "kernels/cpu/panels-inl.h"
#include "kernels/cpu/softmax-inl.h"

#ifndef FOVEA_KERNELS_CPU_STRIP_SUMS_ONCE
#define FOVEA_KERNELS_CPU_STRIP_SUMS_ONCE
namespace fovea::kernels {
namespace {

constexpr int64_t kStripKeys = 256;

/// The strip of one head: its last `rows` queries against all keys.
struct Strip {
  const void* q;  // the first of the rows
  const void* k;
  DType dtype_q, dtype_k;
  int64_t stride_q, stride_k;
  int64_t rows, keys, dim;
  float scale;
  float* columns;    // [keys]
  float* diagonals;  // [keys]

  int64_t tiles() const { return (keys + kStripKeys - 1) / kStripKeys; }
  /// Keys of tile `t` that row r sees.
  int64_t visible(int64_t t, int64_t r) const {
    const int64_t begin = t * kStripKeys;
    return std::clamp<int64_t>(keys - rows + 1 + r - begin, 0, std::min(kStripKeys, keys - begin));
  }
};

}  // namespace
}  // namespace fovea::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

/// Weights of all rows, tile after tile: strip [tiles][rows][kStripKeys] holds 2^(s - used), where `used`
/// [tiles][rows] is the row's maximum up to that tile.
void weigh_strip(const Strip& s, float* scratch, float* strip, float* used, std::vector<RunningRow>& row) {
  const int64_t depth = round_up(s.dim, 4);
  float* a = scratch;  // [rows][depth]
  float* pack = a + s.rows * depth;
  float* panels = pack + kLanes * depth;
  const Rows queries{s.q, s.dtype_q, s.stride_q, s.rows, s.dim};
  for (int64_t r = 0; r < s.rows; ++r) {
    load_row(queries.row(r), s.dtype_q, s.dim, s.scale * kLog2E, a + r * depth, s.dim);
    std::fill(a + r * depth + s.dim, a + (r + 1) * depth, 0.0f);
  }
  for (int64_t t = 0; t < s.tiles(); ++t, strip += s.rows * kStripKeys, used += s.rows) {
    const int64_t begin = t * kStripKeys, count = std::min(kStripKeys, s.keys - begin);
    const void* first = static_cast<const char*>(s.k) + begin * s.stride_k * size_of(s.dtype_k);
    pack_transposed({first, s.dtype_k, s.stride_k, count, s.dim}, panels, panel_floats(depth), pack);
    multiply_panels({a, depth, 1, panels, kPanel, strip, kStripKeys, s.rows, depth, false},
                    panel_floats(depth), round_up(count, kLanes));
    for (int64_t r = 0; r < s.rows; ++r) {
      fold(row[static_cast<size_t>(r)], strip + r * kStripKeys, s.visible(t, r));
      used[r] = row[static_cast<size_t>(r)].maximum;
    }
  }
}

void strip_of_head(const Strip& s, memory::Buffer<float>& scratch) {
  const int64_t strip_floats = s.tiles() * s.rows * kStripKeys, depth = round_up(s.dim, 4);
  const int64_t product_floats = (s.rows + kLanes + round_up(kStripKeys, kPanel)) * depth;
  scratch.reserve(strip_floats + s.tiles() * s.rows + std::max(product_floats, s.keys + s.rows));
  float* strip = scratch.data();
  float* used = strip + strip_floats;
  float* rest = used + s.tiles() * s.rows;
  std::vector<RunningRow> row(static_cast<size_t>(s.rows));
  weigh_strip(s, rest, strip, used, row);

  // Keys at distance d of the last row lie at reversed[keys - 1 - d]: along a row, distances then run with
  // the keys, shifted by one element from row to row.
  float* reversed = rest;  // [keys + rows]
  std::fill(s.columns, s.columns + s.keys, 0.0f);
  std::fill(reversed, reversed + s.keys + s.rows, 0.0f);
  for (int64_t t = 0; t < s.tiles(); ++t)
    for (int64_t r = 0; r < s.rows; ++r) {
      const int64_t seen = s.visible(t, r);
      if (seen == 0) continue;
      const RunningRow& of_row = row[static_cast<size_t>(r)];
      const float factor = std::exp2(used[t * s.rows + r] - of_row.maximum) / of_row.sum;
      const float* p = strip + (t * s.rows + r) * kStripKeys;
      add_scaled(s.columns + t * kStripKeys, p, factor, seen);
      add_scaled(reversed + t * kStripKeys + s.rows - 1 - r, p, factor, seen);
    }
  std::reverse_copy(reversed, reversed + s.keys, s.diagonals);
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
namespace {
HWY_EXPORT(strip_of_head);
}

StripSums strip_sums(const Tensor& any_q, const Tensor& any_k, int64_t rows) {
  require(any_q.rank() == 4 && any_k.rank() == 4 && is_float(any_q.dtype()) && is_float(any_k.dtype()) &&
              any_q.dim(0) == any_k.dim(0) && any_q.dim(3) == any_k.dim(3) && any_k.dim(1) > 0 &&
              any_q.dim(1) % any_k.dim(1) == 0,
          "strip_sums: q ", any_q.describe(), " and k ", any_k.describe(),
          " are not [B,Hq,Tq,D] and [B,Hkv,Tk,D]");
  require(rows >= 0, "strip_sums: rows = ", rows, " is negative");
  const Tensor q = cpu::with_dense_rows(any_q);
  const Tensor k = cpu::with_dense_rows(any_k);
  const int64_t heads = q.dim(1), group = heads / k.dim(1), tk = k.dim(2);
  // Rows before the first key see nothing and add nothing.
  const int64_t used = std::min({rows, q.dim(2), tk});
  const StripSums result{Tensor::zeros({q.dim(0), heads, tk}), Tensor::zeros({q.dim(0), heads, tk})};
  if (used == 0) return result;
  std::vector<memory::Buffer<float>> scratch(static_cast<size_t>(threads()));
  parallel_for(q.dim(0) * heads, [&](int64_t task, int worker) {
    const int64_t b = task / heads, h = task % heads;
    const Strip strip{
        .q = static_cast<const char*>(q.raw()) +
             (b * q.stride(0) + h * q.stride(1) + (q.dim(2) - used) * q.stride(2)) * size_of(q.dtype()),
        .k = static_cast<const char*>(k.raw()) +
             (b * k.stride(0) + h / group * k.stride(1)) * size_of(k.dtype()),
        .dtype_q = q.dtype(),
        .dtype_k = k.dtype(),
        .stride_q = q.stride(2),
        .stride_k = k.stride(2),
        .rows = used,
        .keys = tk,
        .dim = q.dim(3),
        .scale = 1.0f / std::sqrt(static_cast<float>(q.dim(3))),
        .columns = result.columns.data<float>() + task * tk,
        .diagonals = result.diagonals.data<float>() + task * tk};
    HWY_DYNAMIC_DISPATCH(strip_of_head)(strip, scratch[static_cast<size_t>(worker)]);
  });
  return result;
}

}  // namespace fovea::kernels
#endif  // HWY_ONCE
