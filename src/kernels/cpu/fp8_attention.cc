// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/fp8_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "fovea/core/memory.h"
#include "fovea/core/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/fp8_attention.cc"
#include "hwy/foreach_target.h"
#include "kernels/cpu/e4m3-inl.h"
#include "kernels/cpu/panels-inl.h"
#include "kernels/cpu/softmax-inl.h"

#ifndef FOVEA_KERNELS_CPU_FP8_ATTENTION_ONCE
#define FOVEA_KERNELS_CPU_FP8_ATTENTION_ONCE
namespace fovea::kernels {
namespace {

constexpr int64_t kQueryRows = 64;
constexpr int64_t kMostKeys = 512;

/// Codes of one head: rows of `width` codes, one scale for every `block` rows.
struct CodeRows {
  const uint8_t* codes;
  const float* scales;
  int64_t block, width;
};

/// Rows first .. first + rows - 1 of one query head. Row r sees keys 0 .. r + offset, or all.
struct QueryTile {
  CodeRows q, k, v;
  int64_t first, rows, keys, offset, key_tile;
  bool causal;
  float scale;
  float* o;    // [rows][v.width]
  float* lse;  // [rows]

  int64_t seen(int64_t r) const {
    return causal ? std::clamp<int64_t>(first + r + offset + 1, 0, keys) : keys;
  }
};

}  // namespace
}  // namespace fovea::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

/// Lifts weights, which are at most 1, away from the subnormal codes.
constexpr float kWeightUnit = 256.0f;

/// to[r] = factor * scale * decoded row, zeros up to `padded` values a row.
void decode_rows(const CodeRows& from, int64_t first, int64_t rows, float factor, float* to, int64_t padded) {
  const Floats d;
  const hn::Rebind<uint8_t, Floats> d8;
  const hn::RebindToUnsigned<Floats> d32;
  for (int64_t r = first; r < first + rows; ++r, to += padded) {
    const uint8_t* codes = from.codes + r * from.width;
    const auto scale = hn::Set(d, factor * from.scales[r / from.block]);
    int64_t c = 0;
    for (; c + kLanes <= from.width; c += kLanes)
      hn::StoreU(hn::Mul(scale, decode_e4m3(hn::PromoteTo(d32, hn::LoadU(d8, codes + c)))), d, to + c);
    if (c < from.width) {
      HWY_ALIGN uint8_t tail[kLanes] = {};
      HWY_ALIGN float values[kLanes];
      std::copy(codes + c, codes + from.width, tail);
      hn::Store(hn::Mul(scale, decode_e4m3(hn::PromoteTo(d32, hn::Load(d8, tail)))), d, values);
      std::copy(values, values + (from.width - c), to + c);
    }
    std::fill(to + from.width, to + padded, 0.0f);
  }
}

void round_weights(float* p, int64_t count) {
  const Floats d;
  const auto unit = hn::Set(d, kWeightUnit);
  for (int64_t c = 0; c < count; c += kLanes)
    hn::StoreU(round_to_e4m3(hn::Mul(unit, hn::LoadU(d, p + c))), d, p + c);
}

void attend_tile(const QueryTile& t, memory::Buffer<float>& scratch) {
  const int64_t depth = round_up(t.q.width, 4), width = round_up(t.v.width, kLanes);
  const int64_t tile = std::min(t.key_tile, kMostKeys), columns = round_up(tile, kPanel);
  scratch.reserve(t.rows * (depth + width + columns) + columns * (depth + std::max(depth, width)) +
                  kLanes * depth);
  float* q = scratch.data();
  float* o = q + t.rows * depth;
  float* scores = o + t.rows * width;
  float* panels = scores + t.rows * columns;
  float* decoded = panels + columns * depth;  // keys, then values
  float* pack = decoded + columns * std::max(depth, width);
  RunningRow row[kQueryRows];
  decode_rows(t.q, t.first, t.rows, t.scale * kLog2E, q, depth);
  std::fill(o, o + t.rows * width, 0.0f);

  const int64_t end = t.seen(t.rows - 1);
  for (int64_t begin = 0, next; begin < end; begin = next) {
    next = std::min({begin + tile, (begin / t.k.block + 1) * t.k.block, end});
    const int64_t count = next - begin, padded = round_up(count, kLanes);
    decode_rows(t.k, begin, count, 1.0f, decoded, depth);
    pack_transposed({decoded, DType::f32, depth, count, depth}, panels, panel_floats(depth), pack);
    multiply_panels({q, depth, 1, panels, kPanel, scores, columns, t.rows, depth, false}, panel_floats(depth),
                    padded);
    for (int64_t r = 0; r < t.rows; ++r) {
      float* s = scores + r * columns;
      const int64_t seen = std::clamp<int64_t>(t.seen(r) - begin, 0, count);
      if (seen < count) std::fill(s + seen, s + count, kMinusInfinity);
      const float factor = fold(row[r], s, count);
      if (factor != 1.0f) scale_row(o + r * width, factor, width);
      round_weights(s, padded);
    }
    decode_rows(t.v, begin, count, 1.0f, decoded, width);
    multiply({scores, columns, 1, decoded, width, o, width, t.rows, count, true}, width);
  }

  for (int64_t r = 0; r < t.rows; ++r) {
    const float sum = row[r].sum;
    const bool empty = sum == 0.0f;
    scale_row(o + r * width, empty ? 0.0f : 1.0f / (sum * kWeightUnit), width);
    std::copy(o + r * width, o + r * width + t.v.width, t.o + r * t.v.width);
    t.lse[r] = empty ? kMinusInfinity : kLn2 * (row[r].maximum + std::log2(sum));
  }
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
namespace {

HWY_EXPORT(attend_tile);

/// Contiguous codes and scales, checked against each other.
struct Side {
  Tensor codes, scales;
  int64_t block;

  Side(const char* name, const Fp8Blocks& blocks, int64_t rows_per_scale)
      : codes(blocks.codes.contiguous()), scales(blocks.scales.contiguous()), block(rows_per_scale) {
    require(codes.rank() == 4 && codes.dtype() == DType::u8 && scales.dtype() == DType::f32 && block >= 1,
            "fp8_forward: ", name, " codes ", codes.describe(), " and scales ", scales.describe(),
            " with blocks of ", block, ", expected u8[B,H,T,D] and f32");
    const int64_t count = codes.dim(2) == 0 ? 0 : 1 + (codes.dim(2) - 1) / block;
    require(scales.shape() == Shape{codes.dim(0), codes.dim(1), count}, "fp8_forward: ", name, " scales are ",
            scales.describe(), ", expected one for every ", block, " rows of ", codes.describe());
  }
  CodeRows head(int64_t index) const {
    return {codes.data<uint8_t>() + index * codes.dim(2) * codes.dim(3),
            scales.data<float>() + index * scales.dim(2), block, codes.dim(3)};
  }
};

}  // namespace

AttentionResult fp8_forward(const Fp8Blocks& q_blocks, const Fp8Blocks& k_blocks, const Fp8Blocks& v_blocks,
                            const Fp8Layout& layout, const AttentionParams& params) {
  const Side q("q", q_blocks, layout.block_q), k("k", k_blocks, layout.block_k),
      v("v", v_blocks, layout.block_k);
  const int64_t batch = q.codes.dim(0), heads = q.codes.dim(1), rows = q.codes.dim(2),
                heads_kv = k.codes.dim(1), keys = k.codes.dim(2);
  require(k.codes.dim(0) == batch && k.codes.dim(3) == q.codes.dim(3) && v.codes.dim(0) == batch &&
              v.codes.dim(1) == heads_kv && v.codes.dim(2) == keys && heads_kv > 0 && heads % heads_kv == 0,
          "fp8_forward: q ", q.codes.describe(), ", k ", k.codes.describe(), " and v ", v.codes.describe(),
          " do not fit");
  require(layout.key_tile >= 1, "fp8_forward: key_tile = ", layout.key_tile, " is below 1");
  require(params.visible.window_left < 0 && params.visible.window_right <= 0,
          "fp8_forward: only full and causal visibility are supported");
  const AttentionResult result{Tensor::empty({batch, heads, rows, v.codes.dim(3)}),
                               Tensor::empty({batch, heads, rows})};
  const float scale = params.scale > 0 ? params.scale : 1.0f / std::sqrt(static_cast<float>(q.codes.dim(3)));
  const int64_t tiles = (rows + kQueryRows - 1) / kQueryRows;
  std::vector<memory::Buffer<float>> scratch(static_cast<size_t>(threads()));
  parallel_for(batch * heads * tiles, [&](int64_t task, int worker) {
    // The last tiles of a causal problem are the longest: they go first.
    const int64_t head = task / tiles, first = (tiles - 1 - task % tiles) * kQueryRows;
    const int64_t kv = head / heads * heads_kv + head % heads / (heads / heads_kv);
    const QueryTile tile{.q = q.head(head),
                         .k = k.head(kv),
                         .v = v.head(kv),
                         .first = first,
                         .rows = std::min(kQueryRows, rows - first),
                         .keys = keys,
                         .offset = keys - rows,
                         .key_tile = layout.key_tile,
                         .causal = params.visible.window_right == 0,
                         .scale = scale,
                         .o = result.o.data<float>() + (head * rows + first) * v.codes.dim(3),
                         .lse = result.lse.data<float>() + head * rows + first};
    HWY_DYNAMIC_DISPATCH(attend_tile)(tile, scratch[static_cast<size_t>(worker)]);
  });
  return result;
}

}  // namespace fovea::kernels
#endif  // HWY_ONCE
