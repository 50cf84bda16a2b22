// SPDX-License-Identifier: Apache-2.0
// What a row tile of attention computes with: `Scores` turn queries and keys into scores, `Values` turn
// scores into weights and add up weighted values. A row tile is begun once, then loads one key tile after
// another. Included once per SIMD target.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "fovea/core/memory.h"
#include "kernels/cpu/amx-inl.h"
#include "kernels/cpu/bfloat16-inl.h"
#include "kernels/cpu/few_rows-inl.h"
#include "kernels/cpu/pack-inl.h"
#include "kernels/cpu/results-inl.h"
#include "kernels/cpu/softmax-inl.h"

#if defined(FOVEA_KERNELS_CPU_ARITHMETIC_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_KERNELS_CPU_ARITHMETIC_INL_H_
#undef FOVEA_KERNELS_CPU_ARITHMETIC_INL_H_
#else
#define FOVEA_KERNELS_CPU_ARITHMETIC_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {

/// Some rows of a row tile against the columns [low, high) of a key tile. Row `row + r` has its scores, then
/// its weights, at scores + r * stride.
struct Chunk {
  int64_t row, rows, low, high;
  float* scores;
  int64_t stride;

  float* scores_of(int64_t r) const { return scores + (r - row) * stride; }
};

/// Nothing to set up around a row tile.
struct NoSession {};

/// Scores in f32, of inputs of any type. Up to kFewRows rows may read the keys in place.
class FloatScores {
 public:
  void begin(const AttentionArgs& a, const RowTile& rows, float unit, int64_t keys) {
    a_ = &a, rows_ = rows;
    depth_ = packed_depth(a);
    q_.reserve(rows.rows() * depth_);
    k_.reserve(round_up(keys, kPanel) * depth_);
    stage_.reserve(std::max<int64_t>(kLanes + 1, 4) * depth_);
    pack_queries(a, rows, unit, q_.data());
  }

  void load(const KeyTile& tile, bool in_place) {
    tile_ = tile, in_place_ = in_place;
    if (!in_place) pack_keys(*a_, rows_.batch, rows_.head, tile, stage_.data(), k_.data());
  }

  /// scores (=|+=) unit * scale * q.k
  void multiply(const Chunk& chunk, bool accumulate = false) const {
    const float* q = q_.data() + chunk.row * depth_;
    if (in_place_)
      return score_rows(*a_, rows_.batch, rows_.head, tile_, q, chunk.rows, stage_.data(), chunk.scores,
                        chunk.stride);
    const int64_t skip = chunk.low / kPanel * kPanel;
    multiply_panels({q, depth_, 1, k_.data() + skip * depth_, kPanel, chunk.scores + skip, chunk.stride,
                     chunk.rows, a_->dim + a_->rank, accumulate},
                    kPanel * depth_, round_up(chunk.high, kLanes) - skip);
  }

  /// What the scores are still to be multiplied with.
  float factor() const { return 1.0f; }

 private:
  const AttentionArgs* a_ = nullptr;
  RowTile rows_;
  KeyTile tile_;
  int64_t depth_ = 0;
  bool in_place_ = false;
  memory::Buffer<float> q_, k_, stage_;
};

/// Weights and values in f32.
class FloatValues {
 public:
  using Session = NoSession;
  static constexpr int64_t kChunkRows = 48;
  static constexpr int64_t kEdgeRows = 24;
  static constexpr int64_t kRowGroup = 8;
  static constexpr bool kInPlace = true;
  static constexpr int64_t kRowStep = 1;  // a chunk's scores have room for rows up to a multiple of it

  void begin(const AttentionArgs& a, const RowTile& rows, int64_t keys) {
    a_ = &a, rows_ = rows;
    width_ = round_up(a.dim_v, kLanes);
    packed_.reserve(keys * width_);
  }

  void load(const KeyTile& tile, bool in_place) {
    tile_ = tile, in_place_ = in_place;
    if (!in_place) v_ = pack_values(*a_, rows_.batch, rows_.head, tile, packed_.data());
  }
  bool finite() const { return !in_place_ && all_finite(v_, tile_.count, width_); }

  /// Turns factor * scores of the chunk's rows [begin, begin + count), count <= kRowGroup, into weights, zero
  /// where `sees` hides them, and folds them into the running rows. `rescale` gets the factors for what was
  /// accumulated before. Both pointers are to the first of these rows.
  static void fold(RunningRow* running, const Chunk& chunk, int64_t begin, int64_t count,
                   const VisibleKeys* sees, float factor, float* rescale) {
    for (int64_t r = 0; r < count; ++r) {
      float* scores = chunk.scores_of(begin + r);
      const int64_t first = sees[r].empty() ? chunk.high : sees[r].first(), last = sees[r].last();
      rescale[r] = first < last
                       ? kernels::HWY_NAMESPACE::fold(running[r], scores + first, last - first, factor)
                       : 1.0f;
      std::fill(scores + chunk.low, scores + first, 0.0f);
      if (last < chunk.high) std::fill(scores + std::max(first, last), scores + chunk.high, 0.0f);
    }
  }
  /// The sum of the weights that the values were multiplied with.
  static float weight_sum(const RunningRow& row) { return row.sum; }

  /// o += weights * values for the chunk's rows.
  void add(const Chunk& chunk, float* o) const { add(chunk, true, o); }
  /// The same where a weight of 0 hides a value that is not finite.
  void add_seen(const Chunk& chunk, float* o) const { add(chunk, false, o); }

 private:
  void add(const Chunk& chunk, bool finite, float* o) const {
    o += chunk.row * width_;
    if (in_place_)
      return add_value_rows(*a_, rows_.batch, rows_.head, tile_, chunk.scores, chunk.stride, chunk.rows,
                            !finite, packed_.data(), o, width_);
    weigh_values({chunk.scores + chunk.low, chunk.stride, 1, v_.data + chunk.low * v_.stride, v_.stride, o,
                  width_, chunk.rows, chunk.high - chunk.low, true},
                 finite, width_);
  }

  const AttentionArgs* a_ = nullptr;
  RowTile rows_;
  KeyTile tile_;
  int64_t width_ = 0;
  bool in_place_ = false;
  ValueRows v_ = {};
  memory::Buffer<float> packed_;
};

#if FOVEA_PAIR_PRODUCTS

/// bf16 pairs by dot instructions.
struct PairDots {
  using Session = NoSession;
  using AnyProduct = PairProduct;
  static constexpr int64_t kDepth = 8;    // of packed queries and keys, in bf16
  static constexpr int64_t kKeys = 2;     // of packed values
  static constexpr int64_t kRowStep = 1;  // of A and C
  static constexpr int64_t kChunkRows = 48;
  static constexpr int64_t kEdgeRows = 24;
  static constexpr int64_t kRowGroup = 16;
};

/// bf16 pairs by AMX tiles.
struct PairTiles {
  using Session = TileRegisters;
  using AnyProduct = TileProduct;
  static constexpr int64_t kDepth = 2 * kTilePairs;
  static constexpr int64_t kKeys = 2 * kTilePairs;
  static constexpr int64_t kRowStep = kTileRows;
  static constexpr int64_t kChunkRows = 2 * kTileRows;
  static constexpr int64_t kEdgeRows = 2 * kTileRows;
  static constexpr int64_t kRowGroup = 16;
};

/// Scores of bf16 queries and keys, exact products summed in f32. The scale comes after the sum, since
/// queries times scale would round again; so does the low-rank bias, in f32.
template <class Unit>
class PairScores {
 public:
  void begin(const AttentionArgs& a, const RowTile& rows, float unit, int64_t keys) {
    a_ = &a, rows_ = rows;
    scale_ = a.scale * unit;
    depth_ = round_up(a.dim, Unit::kDepth);
    q_.reserve((rows.rows() + Unit::kRowStep) * depth_ / 2);
    k_.reserve(round_up(keys, kPanel) * depth_ / 2);
    stage_.reserve((kLanes + 1) * depth_ / 2);
    pack_query_pairs(a, rows, depth_, q_.data());
    if (a.rank == 0) return;
    rank_only_ = a;
    rank_only_.dim = 0;
    low_rank_.begin(rank_only_, rows, unit, keys);
  }

  void load(const KeyTile& tile, bool) {
    pack_key_pairs(*a_, rows_.batch, rows_.head / a_->group(), tile, round_up(tile.count, Unit::kKeys),
                   depth_, stage_.data(), k_.data());
    if (a_->rank > 0) low_rank_.load(tile, false);
  }

  void multiply(const Chunk& chunk) const {
    const int64_t skip = chunk.low / kPanel * kPanel, pairs = depth_ / 2;
    const PairProduct product{q_.data() + chunk.row * pairs,
                              pairs,
                              1,
                              k_.data() + skip * pairs,
                              kPanel,
                              chunk.scores + skip,
                              chunk.stride,
                              chunk.rows,
                              pairs,
                              false};
    multiply_panels(typename Unit::AnyProduct{product}, kPanel * pairs, round_up(chunk.high, kLanes) - skip);
    if (a_->rank == 0) return;
    for (int64_t r = 0; r < chunk.rows; ++r)
      scale_row(chunk.scores + r * chunk.stride + skip, scale_, round_up(chunk.high, kLanes) - skip);
    low_rank_.multiply(chunk, true);
  }

  float factor() const { return a_->rank > 0 ? 1.0f : scale_; }

 private:
  const AttentionArgs* a_ = nullptr;
  RowTile rows_;
  int64_t depth_ = 0;
  float scale_ = 1;
  memory::Buffer<Pair> q_, k_;
  memory::Buffer<float> stage_;
  AttentionArgs rank_only_;
  FloatScores low_rank_;
};

/// Weights rounded to bf16 and bf16 values. The result is divided by the sum of the rounded weights: the
/// rounding errors then weigh the distances of the values from their mean, not the values. The sum for lse is
/// taken before rounding.
template <class Unit>
class PairValues {
 public:
  using Session = typename Unit::Session;
  static constexpr int64_t kChunkRows = Unit::kChunkRows;
  static constexpr int64_t kEdgeRows = Unit::kEdgeRows;
  static constexpr int64_t kRowGroup = Unit::kRowGroup;
  static constexpr bool kInPlace = false;
  static constexpr int64_t kRowStep = Unit::kRowStep;

  void begin(const AttentionArgs& a, const RowTile& rows, int64_t keys) {
    a_ = &a, rows_ = rows;
    width_ = round_up(a.dim_v, kLanes);
    v_.reserve((round_up(keys, Unit::kKeys) / 2 + 1) * width_);
    rest_.reserve(Unit::kRowStep * width_);
  }

  void load(const KeyTile& tile, bool) {
    keys_ = round_up(tile.count, Unit::kKeys);
    pack_value_pairs(*a_, rows_.batch, rows_.head / a_->group(), tile, keys_, width_, v_.data());
  }
  bool finite() const { return all_finite_pairs(v_.data(), keys_ / 2 * width_); }

  // The weights of a row take the place of the first half of its scores.
  static void fold(RunningRow* running, const Chunk& chunk, int64_t begin, int64_t count,
                   const VisibleKeys* sees, float factor, float* rescale) {
    RowScores rows[kRowGroup];
    for (int64_t r = 0; r < count; ++r) {
      float* scores = chunk.scores_of(begin + r);
      const int64_t first = sees[r].first(), start = first & ~int64_t{1};  // a pair begins at an even key
      if (start < first) scores[start] = kMinusInfinity;
      rows[r] = {scores + start, reinterpret_cast<uint16_t*>(scores) + start,
                 sees[r].empty() ? 0 : sees[r].last() - start};
    }
    fold_pairs(running, rows, count, factor, rescale);
    for (int64_t r = 0; r < count; ++r) {
      auto* weights = reinterpret_cast<uint16_t*>(chunk.scores_of(begin + r));
      clear(weights, low(chunk), rows[r].weights - weights);
      clear(rows[r].weights, rows[r].count, weights + high(chunk) - rows[r].weights);
    }
  }
  static float weight_sum(const RunningRow& row) { return row.rounded_sum; }

  void add(const Chunk& chunk, float* o) const {
    PairProduct product = product_of(chunk, o);
    const int64_t rest = chunk.rows % Unit::kRowStep;
    product.rows -= rest;
    kernels::HWY_NAMESPACE::multiply(typename Unit::AnyProduct{product}, width_);
    if (rest == 0) return;
    // The rows below belong to others.
    float* rows = product.c + product.rows * width_;
    const size_t bytes = static_cast<size_t>(rest * width_) * sizeof(float);
    std::memcpy(rest_.data(), rows, bytes);
    product.a += product.rows * product.a_row, product.c = rest_.data(), product.rows = rest;
    kernels::HWY_NAMESPACE::multiply(typename Unit::AnyProduct{product}, width_);
    std::memcpy(rows, rest_.data(), bytes);
  }

  void add_seen(const Chunk& chunk, float* o) const {
    const PairProduct all = product_of(chunk, o);
    Pair* seen = v_.data() + keys_ / 2 * width_;
    PairProduct one = all;
    one.rows = one.depth = 1;
    one.b = seen;
    for (int64_t r = 0; r < all.rows; ++r)
      for (int64_t k = 0; k < all.depth; ++k) {
        one.a = all.a + r * all.a_row + k;
        one.c = all.c + r * all.c_stride;
        const Pair weights = load_element(one.a);
        const Pair mask = (weights & 0x7FFFu ? 0xFFFFu : 0u) | (weights & 0x7FFF0000u ? 0xFFFF0000u : 0u);
        if (mask == 0) continue;
        for (int64_t c = 0; c < width_; ++c) seen[c] = all.b[k * width_ + c] & mask;
        kernels::HWY_NAMESPACE::multiply(one, width_);
      }
  }

 private:
  static void clear(uint16_t* weights, int64_t begin, int64_t end) {
    if (begin < end) std::memset(weights + begin, 0, static_cast<size_t>(end - begin) * sizeof(uint16_t));
  }
  static int64_t low(const Chunk& chunk) { return chunk.low / Unit::kKeys * Unit::kKeys; }
  static int64_t high(const Chunk& chunk) { return round_up(chunk.high, Unit::kKeys); }

  PairProduct product_of(const Chunk& chunk, float* o) const {
    const int64_t begin = low(chunk) / 2, end = high(chunk) / 2;
    return {reinterpret_cast<const Pair*>(chunk.scores) + begin,
            chunk.stride,
            1,
            v_.data() + begin * width_,
            width_,
            o + chunk.row * width_,
            width_,
            chunk.rows,
            end - begin,
            true};
  }

  const AttentionArgs* a_ = nullptr;
  RowTile rows_;
  int64_t width_ = 0, keys_ = 0;
  memory::Buffer<Pair> v_;  // and room for a row of values
  memory::Buffer<float> rest_;
};

#endif  // FOVEA_PAIR_PRODUCTS

}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
