// SPDX-License-Identifier: Apache-2.0
// From q.k to the scores of the softmax. Included once per SIMD target.
#include <cstdint>
#include <cstdlib>

#include "fovea/core/memory.h"
#include "kernels/cpu/key_source.h"
#include "kernels/cpu/softmax-inl.h"

#if defined(FOVEA_KERNELS_CPU_SCORES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_KERNELS_CPU_SCORES_INL_H_
#undef FOVEA_KERNELS_CPU_SCORES_INL_H_
#else
#define FOVEA_KERNELS_CPU_SCORES_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {

using cpu::KeyTile;
using cpu::RowTile;

/// Scores are made in base 2, or in natural units where they pass through a softcap.
HWY_INLINE float score_unit(const AttentionArgs& a) { return a.softcap > 0 ? 1.0f : kLog2E; }

/// Bias and mask of one row at gathered keys.
struct GatheredRow {
  memory::Buffer<float> bias;
  memory::Buffer<uint8_t> mask;

  void reserve(int64_t keys) {
    bias.reserve(keys);
    mask.reserve(keys);
  }
};

/// scores = -inf where bit `list` of members is 0
HWY_INLINE void hide_others(float* scores, const uint32_t* members, int64_t list, int64_t count) {
  const Floats d;
  const hn::RebindToUnsigned<Floats> words;
  const auto bit = hn::Set(words, uint32_t{1} << list);
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    const auto has = hn::RebindMask(d, hn::TestBit(hn::LoadU(words, members + c), bit));
    hn::StoreU(hn::IfThenElse(has, hn::LoadU(d, scores + c), hn::Set(d, kMinusInfinity)), d, scores + c);
  }
  for (; c < count; ++c) scores[c] = members[c] >> list & 1 ? scores[c] : kMinusInfinity;
}

/// Turns unit * scale * q.k of row `row` into its score in base 2, for the columns [low, high) of a key tile:
/// bias, slopes, softcap, mask. `list` says which of the tile's members the row reads.
HWY_INLINE void adjust_scores(const AttentionArgs& a, const RowTile& rows, int64_t row, const KeyTile& tile,
                              int64_t list, float unit, const GatheredRow& gathered, float* scores,
                              int64_t low, int64_t high) {
  const int64_t h = rows.head_of(row), i = rows.query_of(row), count = high - low;
  if (a.bias) {
    const float* bias = a.bias.at<float>(rows.batch, h, i);
    if (tile.keys)
      for (int64_t c = 0; c < count; ++c) gathered.bias[c] = bias[tile.keys[low + c]];
    add_scaled(scores + low, tile.keys ? gathered.bias.data() : bias + tile.first + low, unit, count);
  }
  if (a.slopes) {
    const int64_t position = a.position(rows.batch, i);
    if (tile.keys)
      for (int64_t c = low; c < high; ++c)
        scores[c] -= unit * a.slopes[h] * static_cast<float>(std::abs(position - tile.keys[c]));
    else
      add_distance(scores + low, unit * a.slopes[h], position, tile.first + low, count);
  }
  if (a.softcap > 0) cap_scores(scores + low, a.softcap, kLog2E, count);
  if (a.mask) {
    const uint8_t* mask = a.mask.at<uint8_t>(rows.batch, h, i);
    if (tile.keys)
      for (int64_t c = 0; c < count; ++c) gathered.mask[c] = mask[tile.keys[low + c]];
    hide_masked(scores + low, tile.keys ? gathered.mask.data() : mask + tile.first + low, count);
  }
  if (tile.members) hide_others(scores + low, tile.members + low, list, count);
}

}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
