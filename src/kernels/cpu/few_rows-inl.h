// SPDX-License-Identifier: Apache-2.0
// Attention of a few rows over keys and values that are read in place, wherever they stand. Included once per
// SIMD target.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cpu/pack-inl.h"

#if defined(FOVEA_KERNELS_CPU_FEW_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_KERNELS_CPU_FEW_ROWS_INL_H_
#undef FOVEA_KERNELS_CPU_FEW_ROWS_INL_H_
#else
#define FOVEA_KERNELS_CPU_FEW_ROWS_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {

// Keys ahead of the one in use whose rows are asked for.
inline constexpr int64_t kKeysAhead = 12;

/// Rows of keys or values of one kv head that already are f32 of whole vectors.
struct RowsInPlace {
  const char* base;
  int64_t step, bytes;  // from row to row, and of a row

  RowsInPlace(const View& x, int64_t b, int64_t kv, int64_t columns)
      : base(x.at(b, kv, 0)), step(x.row * size_of(x.dtype)), bytes(columns * size_of(x.dtype)) {}
  const float* row(int64_t key) const { return reinterpret_cast<const float*>(base + key * step); }
  HWY_INLINE void prefetch(int64_t key) const {
    constexpr int64_t kLine = 64;
    const char* from = base + key * step;
    for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(from + at, 0, 3);
  }
};

template <int kRows, bool kInPlace>
HWY_NOINLINE void score_few(const AttentionArgs& a, int64_t b, int64_t head, const KeyTile& tile,
                            const float* q, float* stage, float* scores, int64_t stride) {
  const Floats d;
  const int64_t depth = packed_depth(a), kv = head / a.group();
  const RowsInPlace rows(a.k, b, kv, a.dim), values(a.v, b, kv, a.dim_v);
  for (int64_t c = 0; c < tile.count; c += 4) {
    const float* k[4];
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t key = tile.key(std::min(c + i, tile.count - 1));
      if constexpr (kInPlace)
        k[i] = rows.row(key);
      else
        k[i] = key_row(a, b, head, kv, key, stage + i * depth);
      if (c + i + kKeysAhead < tile.count) rows.prefetch(tile.key(c + i + kKeysAhead));
      values.prefetch(key);
    }
    FloatVector sum[kRows][4];
    for (int r = 0; r < kRows; ++r)
      for (int i = 0; i < 4; ++i) sum[r][i] = hn::Zero(d);
    for (int64_t x = 0; x < depth; x += kLanes) {
      const FloatVector key[4] = {hn::LoadU(d, k[0] + x), hn::LoadU(d, k[1] + x), hn::LoadU(d, k[2] + x),
                                  hn::LoadU(d, k[3] + x)};
      for (int r = 0; r < kRows; ++r) {
        const auto query = hn::LoadU(d, q + r * depth + x);
        for (int i = 0; i < 4; ++i) sum[r][i] = hn::MulAdd(query, key[i], sum[r][i]);
      }
    }
    for (int r = 0; r < kRows; ++r) sum_four(sum[r], scores + r * stride + c);
  }
}

/// Asks for the first keys of a tile that is next.
HWY_INLINE void prefetch_keys(const AttentionArgs& a, int64_t b, int64_t head, const cpu::Keys& next) {
  const RowsInPlace rows(a.k, b, head / a.group(), a.dim);
  for (int64_t c = 0; c < std::min(kKeysAhead, next.count); ++c) rows.prefetch(next.keys[c]);
}

/// Calls body with 1, 2, 3 or 4 as a type.
template <class Body>
HWY_INLINE void with_rows(int64_t rows, const Body& body) {
  switch (rows) {
    case 1:
      return body(std::integral_constant<int, 1>());
    case 2:
      return body(std::integral_constant<int, 2>());
    case 3:
      return body(std::integral_constant<int, 3>());
    default:
      return body(std::integral_constant<int, 4>());
  }
}

/// scores[r * stride + c] = q_r . k_c for 1 to 4 packed query rows. Writes up to three columns past the
/// last key. The values are asked for along the way. `stage` holds four rows.
HWY_INLINE void score_rows(const AttentionArgs& a, int64_t b, int64_t head, const KeyTile& tile,
                           const float* q, int64_t rows, float* stage, float* scores, int64_t stride) {
  const bool in_place = a.k.dtype == DType::f32 && a.dim == packed_depth(a);
  const auto call = [&](auto rows_known) {
    constexpr int kRows = decltype(rows_known)::value;
    if (in_place) return score_few<kRows, true>(a, b, head, tile, q, stage, scores, stride);
    score_few<kRows, false>(a, b, head, tile, q, stage, scores, stride);
  };
  with_rows(rows, call);
}

/// Adds to kRows x kVectors accumulators of o the weighted values of all keys of the tile.
template <int kRows, int kVectors, bool kInPlace>
HWY_NOINLINE void add_few(const AttentionArgs& a, int64_t b, int64_t kv, const KeyTile& tile, int64_t column,
                          const float* weights, int64_t stride, bool skip_zeros, float* stage, float* o,
                          int64_t width) {
  const Floats d;
  FloatVector sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::LoadU(d, o + r * width + column + v * kLanes);
  const RowsInPlace rows(a.v, b, kv, a.dim_v);
  for (int64_t c = 0; c < tile.count; ++c) {
    if (skip_zeros && weights[c] == 0.0f) continue;
    const float* value = stage;
    if constexpr (kInPlace)
      value = rows.row(tile.key(c));
    else
      load_row(a.v.at(b, kv, tile.key(c)), a.v.dtype, a.dim_v, 1.0f, stage, width);
    FloatVector row[kVectors];
    for (int v = 0; v < kVectors; ++v) row[v] = hn::LoadU(d, value + column + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const auto weight = hn::Set(d, weights[r * stride + c]);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(weight, row[v], sum[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) hn::StoreU(sum[r][v], d, o + r * width + column + v * kLanes);
}

/// o[r] += sum_c weights[r * stride + c] v_c for 1 to 4 rows. With `skip_zeros`, values of weight 0 are not
/// multiplied, since they may be no numbers. `stage` holds one row.
HWY_INLINE void add_value_rows(const AttentionArgs& a, int64_t b, int64_t head, const KeyTile& tile,
                               const float* weights, int64_t stride, int64_t rows, bool skip_zeros,
                               float* stage, float* o, int64_t width) {
  const int64_t kv = head / a.group();
  const bool in_place = a.v.dtype == DType::f32 && a.dim_v == width;
  const auto call = [&](auto rows_known) {
    constexpr int kRows = decltype(rows_known)::value;
    const auto columns = [&](auto vectors, int64_t column) {
      constexpr int kVectors = decltype(vectors)::value;
      if (in_place)
        add_few<kRows, kVectors, true>(a, b, kv, tile, column, weights, stride, skip_zeros, stage, o, width);
      else
        add_few<kRows, kVectors, false>(a, b, kv, tile, column, weights, stride, skip_zeros, stage, o, width);
    };
    int64_t column = 0;
    for (; column + kPanel <= width; column += kPanel)
      columns(std::integral_constant<int, kBlockVectors>(), column);
    for (; column < width; column += kLanes) columns(std::integral_constant<int, 1>(), column);
  };
  if (!skip_zeros) return with_rows(rows, call);
  for (int64_t r = 0; r < rows; ++r, weights += stride, o += width) with_rows(1, call);
}

}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
