// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <vector>

#include "fovea/core/memory.h"
#include "fovea/core/thread_pool.h"
#include "fovea/kernels/pooling.h"
#include "kernels/cpu/dense_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/pair_scores.cc"
#include "hwy/foreach_target.h"
#include "kernels/cpu/panels-inl.h"

#ifndef FOVEA_KERNELS_CPU_PAIR_SCORES_ONCE
#define FOVEA_KERNELS_CPU_PAIR_SCORES_ONCE
namespace fovea::kernels {
namespace {

/// One tile of scores: `rows` query rows of one kv head against `columns` keys or pages.
struct ScoreTile {
  const void* const* queries;  // [rows]
  DType query_type;
  const void* low;   // keys, or lower bounds of pages
  const void* high;  // upper bounds, or null: plain products
  DType key_type;    // of both
  int64_t low_stride, high_stride;
  int64_t rows, columns, dim;
  float scale;
  float* out;
  int64_t out_stride;
};

}  // namespace
}  // namespace fovea::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

/// With at most this many rows the pages are read as they lie: packing them would cost more than the
/// products.
constexpr int64_t kFewRows = 3;

/// a[r] = scale * q_r, or for bounds (max(q_r, 0), min(q_r, 0)): max(q lo, q hi) = max(q,0) hi + min(q,0) lo.
void load_queries(const ScoreTile& tile, int64_t depth, float* a) {
  const int64_t width = tile.high != nullptr ? 2 * depth : depth;
  for (int64_t r = 0; r < tile.rows; ++r, a += width) {
    load_row(tile.queries[r], tile.query_type, tile.dim, tile.scale, a, tile.dim);
    std::fill(a + tile.dim, a + depth, 0.0f);
    if (tile.high == nullptr) continue;
    for (int64_t c = 0; c < depth; ++c) {
      const float q = a[c];
      a[c] = std::max(q, 0.0f);
      a[depth + c] = std::min(q, 0.0f);
    }
  }
}

template <typename T>
void bounds_of_few_rows(const ScoreTile& tile, int64_t depth, const float* a) {
  const Floats d;
  const int64_t whole = tile.dim / kLanes * kLanes;
  for (int64_t n = 0; n < tile.columns; ++n) {
    const T* low = static_cast<const T*>(tile.low) + n * tile.low_stride;
    const T* high = static_cast<const T*>(tile.high) + n * tile.high_stride;
    for (int64_t r = 0; r < tile.rows; ++r) {
      const float* positive = a + r * 2 * depth;
      const float* negative = positive + depth;
      auto above = hn::Zero(d), below = hn::Zero(d);
      for (int64_t c = 0; c < whole; c += kLanes) {
        above = hn::MulAdd(hn::LoadU(d, positive + c), load_floats(high + c), above);
        below = hn::MulAdd(hn::LoadU(d, negative + c), load_floats(low + c), below);
      }
      float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(above, below)));
      for (int64_t c = whole; c < tile.dim; ++c)
        sum += positive[c] * to_float(high[c]) + negative[c] * to_float(low[c]);
      tile.out[r * tile.out_stride + n] = sum;
    }
  }
}

void score_tile(const ScoreTile& tile, memory::Buffer<float>& scratch) {
  const int64_t depth = round_up(tile.dim, 4), padded = round_up(tile.columns, kLanes);
  const int64_t width = tile.high != nullptr ? 2 * depth : depth;
  const int64_t a_floats = round_up(tile.rows * width, 16), pack_floats = kLanes * depth;
  const int64_t b_floats = round_up(padded, kPanel) * width;
  const bool direct = padded == tile.columns;
  scratch.reserve(a_floats + pack_floats + b_floats + (direct ? 0 : tile.rows * padded));
  float* a = scratch.data();
  load_queries(tile, depth, a);
  if (tile.high != nullptr && tile.rows <= kFewRows) {
    if (tile.key_type == DType::f16) return bounds_of_few_rows<Half>(tile, depth, a);
    if (tile.key_type == DType::bf16) return bounds_of_few_rows<BFloat16>(tile, depth, a);
    return bounds_of_few_rows<float>(tile, depth, a);
  }

  float* pack = a + a_floats;
  float* b = pack + pack_floats;
  const int64_t panel = panel_floats(width);
  const Rows low{tile.low, tile.key_type, tile.low_stride, tile.columns, tile.dim};
  if (tile.high != nullptr) {
    pack_transposed({tile.high, tile.key_type, tile.high_stride, tile.columns, tile.dim}, b, panel, pack);
    pack_transposed(low, b + panel_floats(depth), panel, pack);
  } else {
    pack_transposed(low, b, panel, pack);
  }
  float* c = direct ? tile.out : b + b_floats;
  const int64_t c_stride = direct ? tile.out_stride : padded;
  multiply_panels({a, width, 1, b, kPanel, c, c_stride, tile.rows, width, false}, panel, padded);
  if (!direct)
    for (int64_t r = 0; r < tile.rows; ++r)
      std::copy(c + r * padded, c + r * padded + tile.columns, tile.out + r * tile.out_stride);
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
namespace {

HWY_EXPORT(score_tile);

constexpr int64_t kTileRows = 64;
constexpr int64_t kTileColumns = 256;

/// Scores of all rows of a group of query heads against the keys (or bounds) of its kv head, in tiles.
Tensor scores_in_tiles(const Tensor& any_q, const Tensor& any_low, const Tensor& any_high, float scale) {
  const Tensor q = cpu::with_dense_rows(any_q), low = cpu::with_dense_rows(any_low);
  const Tensor high = any_high.defined() ? cpu::with_dense_rows(any_high) : Tensor();
  const int64_t heads_q = q.dim(1), heads_kv = low.dim(1), group = heads_kv > 0 ? heads_q / heads_kv : 0;
  const int64_t m = q.dim(2), n = low.dim(2), rows = group * m;
  const Tensor out = Tensor::empty({q.dim(0), heads_q, m, n});
  const int64_t row_tiles = (rows + kTileRows - 1) / kTileRows,
                column_tiles = (n + kTileColumns - 1) / kTileColumns;
  std::vector<memory::Buffer<float>> scratch(static_cast<size_t>(threads()));
  parallel_for(q.dim(0) * heads_kv * row_tiles * column_tiles, [&](int64_t task, int worker) {
    const int64_t first_column = task % column_tiles * kTileColumns;
    const int64_t first_row = task / column_tiles % row_tiles * kTileRows;
    const int64_t head = task / (column_tiles * row_tiles), b = head / heads_kv, g = head % heads_kv;
    std::array<const void*, kTileRows> queries;
    ScoreTile tile{.queries = queries.data(),
                   .query_type = q.dtype(),
                   .low = nullptr,
                   .high = nullptr,
                   .key_type = low.dtype(),
                   .low_stride = low.stride(2),
                   .high_stride = 0,
                   .rows = std::min(kTileRows, rows - first_row),
                   .columns = std::min(kTileColumns, n - first_column),
                   .dim = q.dim(3),
                   .scale = scale,
                   .out = out.data<float>() + (head * rows + first_row) * n + first_column,
                   .out_stride = n};
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t row = first_row + r;
      queries[static_cast<size_t>(r)] =
          static_cast<const char*>(q.raw()) +
          (b * q.stride(0) + (g * group + row / m) * q.stride(1) + row % m * q.stride(2)) *
              size_of(q.dtype());
    }
    tile.low = static_cast<const char*>(low.raw()) +
               (b * low.stride(0) + g * low.stride(1) + first_column * low.stride(2)) * size_of(low.dtype());
    if (high.defined()) {
      tile.high =
          static_cast<const char*>(high.raw()) +
          (b * high.stride(0) + g * high.stride(1) + first_column * high.stride(2)) * size_of(high.dtype());
      tile.high_stride = high.stride(2);
    }
    HWY_DYNAMIC_DISPATCH(score_tile)(tile, scratch[static_cast<size_t>(worker)]);
  });
  return out;
}

void check_pair(const Tensor& q, const Tensor& k, const char* kernel) {
  require(q.rank() == 4 && k.rank() == 4 && is_float(q.dtype()) && is_float(k.dtype()) &&
              q.dim(0) == k.dim(0) && q.dim(3) == k.dim(3) && k.dim(1) > 0 && q.dim(1) % k.dim(1) == 0,
          kernel, ": q ", q, " and k ", k, " are not [B,Hq,M,D] and [B,Hkv,N,D]");
}

}  // namespace

Tensor pair_scores(const Tensor& q, const Tensor& k, float scale) {
  check_pair(q, k, "pair_scores");
  return scores_in_tiles(q, k, {}, scale);
}

Tensor bound_scores(const Tensor& q, const Bounds& bounds) {
  check_pair(q, bounds.low, "bound_scores");
  require(bounds.low.dtype() == bounds.high.dtype() && bounds.low.shape() == bounds.high.shape(),
          "bound_scores: low ", bounds.low, " and high ", bounds.high, " are not of one type and shape");
  return scores_in_tiles(q, bounds.low, bounds.high, 1.0f);
}

}  // namespace fovea::kernels
#endif  // HWY_ONCE
