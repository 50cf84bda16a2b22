// SPDX-License-Identifier: Apache-2.0
// Packing of query, key and value rows into f32 tiles. Included once per SIMD target.
#include <cstdint>

#include "kernels/cpu/key_source.h"
#include "kernels/cpu/tile-inl.h"

#if defined(FOVEA_KERNELS_CPU_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_KERNELS_CPU_PACK_INL_H_
#undef FOVEA_KERNELS_CPU_PACK_INL_H_
#else
#define FOVEA_KERNELS_CPU_PACK_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {

using cpu::KeyTile;
using cpu::RowTile;

/// Asks for a row that is read soon.
HWY_INLINE void prefetch_row(const View& x, int64_t b, int64_t head, int64_t key, int64_t count) {
  constexpr int64_t kLine = 64;
  const char* row = x.at(b, head, key);
  for (int64_t at = 0; at < count * size_of(x.dtype); at += kLine) __builtin_prefetch(row + at, 0, 3);
}

/// Length of a packed query or key row: D, the rank of the low-rank bias, and zeros.
HWY_INLINE int64_t packed_depth(const AttentionArgs& a) { return round_up(a.dim + a.rank, kLanes); }

/// to [rows, packed_depth]: scale * unit * q, and unit * bias_q beside it.
HWY_INLINE void pack_queries(const AttentionArgs& a, const RowTile& tile, float unit, float* to) {
  const int64_t depth = packed_depth(a);
  for (int64_t r = 0; r < tile.rows(); ++r, to += depth) {
    const int64_t h = tile.head_of(r), i = tile.query_of(r);
    load_row(a.q.at(tile.batch, h, i), a.q.dtype, a.dim, a.scale * unit, to, a.dim);
    if (a.rank > 0) load_row(a.bias_q.at<float>(tile.batch, h, i), a.rank, unit, to + a.dim, a.rank);
    std::fill(to + a.dim + a.rank, to + depth, 0.0f);
  }
}

/// One key row with its low-rank bias beside it, as f32 padded with zeros to packed_depth; in place when it
/// already is that.
HWY_INLINE const float* key_row(const AttentionArgs& a, int64_t b, int64_t head, int64_t kv, int64_t j,
                                float* stage) {
  char* from = a.k.at(b, kv, j);
  const int64_t depth = packed_depth(a);
  if (a.k.dtype == DType::f32 && a.dim == depth) return reinterpret_cast<const float*>(from);
  load_row(from, a.k.dtype, a.dim, 1.0f, stage, a.dim);
  if (a.rank > 0) load_row(a.bias_k.at<float>(b, head, j), a.rank, 1.0f, stage + a.dim, a.rank);
  std::fill(stage + a.dim + a.rank, stage + depth, 0.0f);
  return stage;
}

/// to: panels [packed_depth][kPanel] of transposed keys; columns past the last key are zero up to a multiple
/// of kLanes. `stage` holds kLanes + 1 rows.
HWY_INLINE void pack_keys(const AttentionArgs& a, int64_t b, int64_t head, const KeyTile& tile, float* stage,
                          float* to) {
  const int64_t depth = packed_depth(a), kv = head / a.group();
  float* zeros = stage + kLanes * depth;
  std::fill(zeros, zeros + depth, 0.0f);
  const float* rows[kLanes];
  for (int64_t c = 0; c < tile.count; c += kLanes) {
    // Gathered rows are out of reach of the processor's own look-ahead.
    for (int64_t r = kLanes; tile.keys && r < 2 * kLanes && c + r < tile.count; ++r)
      prefetch_row(a.k, b, kv, tile.keys[c + r], a.dim);
    for (int64_t r = 0; r < kLanes; ++r)
      rows[r] = c + r < tile.count ? key_row(a, b, head, kv, tile.key(c + r), stage + r * depth) : zeros;
    transpose_rows(rows, depth, to + c / kPanel * depth * kPanel + c % kPanel, kPanel);
  }
}

/// Value rows of a tile as [count][stride] f32.
struct ValueRows {
  const float* data;
  int64_t stride;
};

/// In place where the values already are dense f32 rows of whole vectors, else packed into `to`.
HWY_INLINE ValueRows pack_values(const AttentionArgs& a, int64_t b, int64_t head, const KeyTile& tile,
                                 float* to) {
  const int64_t kv = head / a.group(), width = round_up(a.dim_v, kLanes);
  if (!tile.keys && a.v.dtype == DType::f32 && a.v.row == width && a.dim_v == width)
    return {a.v.at<float>(b, kv, tile.first), width};
  constexpr int64_t kAhead = 16;
  for (int64_t c = 0; c < tile.count; ++c) {
    if (tile.keys && c + kAhead < tile.count) prefetch_row(a.v, b, kv, tile.keys[c + kAhead], a.dim_v);
    load_row(a.v.at(b, kv, tile.key(c)), a.v.dtype, a.dim_v, 1.0f, to + c * width, width);
  }
  return {to, width};
}

HWY_INLINE bool all_finite(const ValueRows& v, int64_t count, int64_t width) {
  const Floats d;
  auto sum = hn::Zero(d);  // 0 * x is 0 exactly for finite x
  for (int64_t c = 0; c < count; ++c)
    for (int64_t x = 0; x < width; x += kLanes)
      sum = hn::MulAdd(hn::LoadU(d, v.data + c * v.stride + x), hn::Zero(d), sum);
  return hn::AllTrue(d, hn::Eq(sum, hn::Zero(d)));
}

}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
