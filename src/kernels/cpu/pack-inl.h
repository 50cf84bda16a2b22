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
    for (int64_t r = 0; r < kLanes; ++r)
      rows[r] = c + r < tile.count ? key_row(a, b, head, kv, tile.key(c + r), stage + r * depth) : zeros;
    transpose_rows(rows, depth, to + c / kPanel * depth * kPanel + c % kPanel, kPanel);
  }
}

/// The sums of four vectors, in the order given.
HWY_INLINE void sum_four(const FloatVector (&v)[4], float* to) {
#if HWY_TARGET == HWY_SCALAR
  for (int i = 0; i < 4; ++i) to[i] = hn::GetLane(v[i]);
#else
  // Interleaved halves are added twice; every 128-bit block then holds its share of the four sums.
  const Floats d;
  const hn::RepartitionToWide<Floats> wide;
  const auto first =
      hn::BitCast(wide, hn::Add(hn::InterleaveLower(d, v[0], v[1]), hn::InterleaveUpper(d, v[0], v[1])));
  const auto second =
      hn::BitCast(wide, hn::Add(hn::InterleaveLower(d, v[2], v[3]), hn::InterleaveUpper(d, v[2], v[3])));
  const auto blocks = hn::Add(hn::BitCast(d, hn::InterleaveLower(wide, first, second)),
                              hn::BitCast(d, hn::InterleaveUpper(wide, first, second)));
  HWY_ALIGN float shares[kLanes];
  hn::Store(blocks, d, shares);
  const hn::Full128<float> block;
  auto sum = hn::Load(block, shares);
  for (int64_t i = 4; i < kLanes; i += 4) sum = hn::Add(sum, hn::Load(block, shares + i));
  hn::StoreU(sum, block, to);
#endif
}

/// scores[r * stride + c] = q_r . k_c for a few packed query rows, without packing the keys. Writes up to
/// three columns past the last key; `stage` holds four rows.
HWY_INLINE void score_rows(const AttentionArgs& a, int64_t b, int64_t head, const KeyTile& tile,
                           const float* q, int64_t rows, float* stage, float* scores, int64_t stride) {
  const Floats d;
  const int64_t depth = packed_depth(a), kv = head / a.group();
  for (int64_t c = 0; c < tile.count; c += 4) {
    const float* k[4];
    for (int64_t i = 0; i < 4; ++i)
      k[i] = key_row(a, b, head, kv, tile.key(std::min(c + i, tile.count - 1)), stage + i * depth);
    for (int64_t r = 0; r < rows; ++r) {
      FloatVector sum[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
      for (int64_t x = 0; x < depth; x += kLanes) {
        const auto query = hn::LoadU(d, q + r * depth + x);
        sum[0] = hn::MulAdd(query, hn::LoadU(d, k[0] + x), sum[0]);
        sum[1] = hn::MulAdd(query, hn::LoadU(d, k[1] + x), sum[1]);
        sum[2] = hn::MulAdd(query, hn::LoadU(d, k[2] + x), sum[2]);
        sum[3] = hn::MulAdd(query, hn::LoadU(d, k[3] + x), sum[3]);
      }
      sum_four(sum, scores + r * stride + c);
    }
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
  for (int64_t c = 0; c < tile.count; ++c)
    load_row(a.v.at(b, kv, tile.key(c)), a.v.dtype, a.dim_v, 1.0f, to + c * width, width);
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
