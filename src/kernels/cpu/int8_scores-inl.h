// SPDX-License-Identifier: Apache-2.0
// Scores of queries and keys quantised to 8 bits. Included once per SIMD target.
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/cpu/arithmetic-inl.h"
#include "kernels/cpu/matmul_panels.h"

#if defined(FOVEA_KERNELS_CPU_INT8_SCORES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_KERNELS_CPU_INT8_SCORES_INL_H_
#undef FOVEA_KERNELS_CPU_INT8_SCORES_INL_H_
#else
#define FOVEA_KERNELS_CPU_INT8_SCORES_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {

/// Query and key rows as step * code, codes in [-127, 127]; a row that is not finite has step NaN. The dots
/// of codes are exact: as f32, since they stay below 2^24 for D <= 1040, or as quads of bytes where the
/// processor has VNNI. A low-rank bias is added in f32.
template <class Element>
class Int8Scores {
 public:
  void begin(const AttentionArgs& a, const RowTile& rows, float unit, int64_t keys) {
    a_ = &a, rows_ = rows;
    bytes_ = round_up(a.dim, 16);
    depth_ = bytes_ / kCodes;
    const int64_t n = rows.rows(), columns = round_up(keys, kPanel);
    codes_.reserve(bytes_), row_.reserve(bytes_);
    q_.reserve((n + 1) * depth_), q_step_.reserve(n);
    k_.reserve(columns * depth_), k_step_.reserve(columns), offset_.reserve(columns);
    stage_.reserve(kLanes * depth_);
    for (int64_t r = 0; r < n; ++r) {
      q_step_[r] =
          a.scale * unit * quantise(a.q.at(rows.batch, rows.head_of(r), rows.query_of(r)), a.q.dtype);
      store_codes(kOffset, q_.data() + r * depth_);
    }
    std::memset(codes_.data(), 0, static_cast<size_t>(bytes_));
    store_codes(kOffset, q_.data() + n * depth_);
    if (a.rank == 0) return;
    rank_only_ = a;
    rank_only_.dim = 0;
    low_rank_.begin(rank_only_, rows, unit, keys);
  }

  void load(const KeyTile& tile, bool) {
    const int64_t kv = rows_.head / a_->group(), columns = round_up(tile.count, kLanes);
    const float* rows[kLanes];
    for (int64_t r = 0; r < kLanes; ++r) rows[r] = reinterpret_cast<const float*>(stage_.data() + r * depth_);
    for (int64_t c = 0; c < columns; c += kLanes) {
      for (int64_t r = 0; r < kLanes; ++r) {
        const bool there = c + r < tile.count;
        if (!there) std::memset(codes_.data(), 0, static_cast<size_t>(bytes_));
        k_step_[c + r] = there ? quantise(a_->k.at(rows_.batch, kv, tile.key(c + r)), a_->k.dtype) : 0.0f;
        store_codes(0, stage_.data() + r * depth_);
      }
      auto* panel = reinterpret_cast<float*>(k_.data() + c / kPanel * depth_ * kPanel + c % kPanel);
      transpose_rows(rows, depth_, panel, kPanel);
    }
    // What the offset of a query's codes adds to its dots, by a query of zeros.
    if constexpr (kOffset != 0) multiply_codes(rows_.rows(), 1, 0, columns, offset_.data(), 0);
    if (a_->rank > 0) low_rank_.load(tile, false);
  }

  void multiply(const Chunk& chunk) const {
    const Floats d;
    const int64_t skip = chunk.low / kPanel * kPanel, end = round_up(chunk.high, kLanes);
    multiply_codes(chunk.row, chunk.rows, skip, end, chunk.scores, chunk.stride);
    for (int64_t r = 0; r < chunk.rows; ++r) {
      float* scores = chunk.scores + r * chunk.stride;
      const auto step = hn::Set(d, q_step_[chunk.row + r]);
      for (int64_t c = skip; c < end; c += kLanes) {
        const auto steps = hn::Mul(step, hn::LoadU(d, k_step_.data() + c));
        hn::StoreU(hn::Mul(steps, dots(scores + c, offset_.data() + c)), d, scores + c);
      }
    }
    if (a_->rank > 0) low_rank_.multiply(chunk, true);
  }

  float factor() const { return 1.0f; }

 private:
  static constexpr int64_t kCodes = std::is_same_v<Element, float> ? 1 : 4;  // in an element
  static constexpr uint8_t kOffset =
      std::is_same_v<Element, float> ? 0 : 128;  // makes a query's codes unsigned

  // Returns the step; the codes are in codes_.
  float quantise(const char* from, DType dtype) {
    load_row(from, dtype, a_->dim, 1.0f, row_.data(), a_->dim);
    std::fill(row_.data() + a_->dim, row_.data() + bytes_, 0.0f);
    float step = 0, sum = 0;
    cpu::quantize_row(row_.data(), 0, {codes_.data(), &step, &sum, bytes_, bytes_});
    return step;
  }

  void store_codes(uint8_t offset, Element* to) const {
    if constexpr (kCodes == 1) {
      const Floats d;
      const hn::RebindToSigned<Floats> wide;
      const hn::Rebind<int8_t, Floats> narrow;
      for (int64_t i = 0; i < bytes_; i += kLanes)
        hn::StoreU(hn::ConvertTo(d, hn::PromoteTo(wide, hn::LoadU(narrow, codes_.data() + i))), d, to + i);
    } else {
      auto* bytes = reinterpret_cast<unsigned char*>(to);
      for (int64_t i = 0; i < bytes_; ++i)
        bytes[i] = static_cast<unsigned char>(static_cast<uint8_t>(codes_[i]) + offset);
    }
  }

  void multiply_codes(int64_t row, int64_t rows, int64_t skip, int64_t end, float* to, int64_t stride) const {
    const ProductOf<Element> product{q_.data() + row * depth_,
                                     depth_,
                                     1,
                                     k_.data() + skip * depth_,
                                     kPanel,
                                     to + skip,
                                     stride,
                                     rows,
                                     depth_,
                                     false};
    multiply_panels(product, kPanel * depth_, end - skip);
  }

  HWY_INLINE static FloatVector dots(const float* products, [[maybe_unused]] const float* offset) {
    const Floats d;
    if constexpr (kCodes == 1) {
      return hn::LoadU(d, products);
    } else {
      const hn::RebindToSigned<Floats> wide;
      return hn::ConvertTo(
          d, hn::Sub(hn::BitCast(wide, hn::LoadU(d, products)), hn::BitCast(wide, hn::LoadU(d, offset))));
    }
  }

  const AttentionArgs* a_ = nullptr;
  RowTile rows_;
  int64_t bytes_ = 0, depth_ = 0;
  memory::Buffer<int8_t> codes_;  // of one row
  memory::Buffer<float> row_, q_step_, k_step_, offset_;
  memory::Buffer<Element> q_, k_, stage_;
  AttentionArgs rank_only_;
  FloatScores low_rank_;
};

}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
