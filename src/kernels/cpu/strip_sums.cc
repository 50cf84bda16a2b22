// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "fovea/core/memory.h"
#include "fovea/core/thread_pool.h"
#include "fovea/kernels/pooling.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/strip_sums.cc"
#include "hwy/foreach_target.h"
#include "kernels/cpu/panels-inl.h"

#ifndef FOVEA_KERNELS_CPU_STRIP_SUMS_ONCE
#define FOVEA_KERNELS_CPU_STRIP_SUMS_ONCE
namespace fovea::kernels {
namespace {

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
};

constexpr int64_t kStripKeys = 256;

}  // namespace
}  // namespace fovea::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

/// s[0..count) becomes 2^(s - maximum), the rest of the tile 0. `maximum` and `sum` are those of the row so
/// far.
void exponentials(float* s, int64_t count, float& maximum, float& sum) {
  const Floats d;
  const int64_t padded = round_up(count, kLanes);
  for (int64_t j = count; j < padded; ++j) s[j] = -std::numeric_limits<float>::infinity();
  std::fill(s + padded, s + kStripKeys, 0.0f);
  auto best = hn::Set(d, maximum);
  for (int64_t j = 0; j < padded; j += kLanes) best = hn::Max(best, hn::LoadU(d, s + j));
  const float now = hn::GetLane(hn::MaxOfLanes(d, best));
  const float subtracted = std::isinf(now) && now < 0 ? 0.0f : now;
  auto total = hn::Zero(d);
  for (int64_t j = 0; j < padded; j += kLanes) {
    const auto p = exp2_of(d, hn::Sub(hn::LoadU(d, s + j), hn::Set(d, subtracted)));
    hn::StoreU(p, d, s + j);
    total = hn::Add(total, p);
  }
  sum = sum * std::exp2(maximum - subtracted) + hn::GetLane(hn::SumOfLanes(d, total));
  maximum = now;
}

HWY_INLINE void add_scaled(const float* from, float factor, int64_t count, float* to) {
  const Floats d;
  for (int64_t j = 0; j < count; j += kLanes)
    hn::StoreU(hn::MulAdd(hn::Set(d, factor), hn::LoadU(d, from + j), hn::LoadU(d, to + j)), d, to + j);
}

void strip_of_head(const Strip& s, memory::Buffer<float>& scratch) {
  const int64_t depth = round_up(s.dim, 4), tiles = (s.keys + kStripKeys - 1) / kStripKeys;
  const int64_t tile_floats = s.rows * kStripKeys, keys = tiles * kStripKeys;
  const int64_t b_floats = round_up(kStripKeys, kPanel) * depth;
  scratch.reserve(tiles * tile_floats + 2 * keys + s.rows + s.rows * depth + kLanes * depth + b_floats +
                  (tiles + 2) * s.rows);
  float* strip = scratch.data();                 // [tiles][rows][kStripKeys]
  float* columns = strip + tiles * tile_floats;  // [keys]
  // Keys at distance d of the last row lie at reversed[keys_last - d]: along a row, distances then run with
  // the keys, shifted by one element from row to row.
  float* reversed = columns + keys;  // [keys + rows]
  float* a = reversed + keys + s.rows;
  float* pack = a + s.rows * depth;
  float* b = pack + kLanes * depth;
  float* used = b + b_floats;  // [tiles][rows]: the maximum that a tile's exponentials subtracted
  float* maximum = used + tiles * s.rows;
  float* sum = maximum + s.rows;

  const Rows queries{s.q, s.dtype_q, s.stride_q, s.rows, s.dim};
  for (int64_t r = 0; r < s.rows; ++r) {
    load_row(queries.row(r), s.dtype_q, s.dim, s.scale * kLog2E, a + r * depth, s.dim);
    std::fill(a + r * depth + s.dim, a + (r + 1) * depth, 0.0f);
  }
  std::fill(maximum, maximum + s.rows, -std::numeric_limits<float>::infinity());
  std::fill(sum, sum + s.rows, 0.0f);
  const int64_t first_visible = s.keys - s.rows + 1;  // keys that row 0 sees
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t begin = t * kStripKeys, count = std::min(kStripKeys, s.keys - begin);
    const Rows rows{static_cast<const char*>(s.k) + begin * s.stride_k * size_of(s.dtype_k), s.dtype_k,
                    s.stride_k, count, s.dim};
    float* tile = strip + t * tile_floats;
    pack_transposed(rows, b, panel_floats(depth), pack);
    multiply_panels({a, depth, 1, b, kPanel, tile, kStripKeys, s.rows, depth, false}, panel_floats(depth),
                    round_up(count, kLanes));
    for (int64_t r = 0; r < s.rows; ++r) {
      const int64_t visible = std::clamp<int64_t>(first_visible + r - begin, 0, count);
      exponentials(tile + r * kStripKeys, visible, maximum[r], sum[r]);
      used[t * s.rows + r] = maximum[r];
    }
  }

  std::fill(columns, reversed + keys + s.rows, 0.0f);
  for (int64_t t = 0; t < tiles; ++t)
    for (int64_t r = 0; r < s.rows; ++r) {
      const float tile_maximum = used[t * s.rows + r];
      if (sum[r] == 0 || (std::isinf(tile_maximum) && tile_maximum < 0)) continue;
      const float factor = std::exp2(tile_maximum - maximum[r]) / sum[r];
      const float* p = strip + t * tile_floats + r * kStripKeys;
      add_scaled(p, factor, kStripKeys, columns + t * kStripKeys);
      add_scaled(p, factor, kStripKeys, reversed + t * kStripKeys + (s.rows - 1 - r));
    }
  std::copy(columns, columns + s.keys, s.columns);
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
  const Tensor q = any_q.dim(3) <= 1 || any_q.stride(3) == 1 ? any_q : any_q.contiguous();
  const Tensor k = any_k.dim(3) <= 1 || any_k.stride(3) == 1 ? any_k : any_k.contiguous();
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
