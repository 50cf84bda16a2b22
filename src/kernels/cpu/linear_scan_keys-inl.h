// SPDX-License-Identifier: Apache-2.0
// The keys of one chunk of a linear scan and what decays do to them. Included once per SIMD target.
//
// Between tokens j < i lies the decay w_ij = prod_{m=j+1..i} a_m, for each channel or for all. Ratios of
// products would overflow and lose what strong decays leave, so every w here is a product (or the exponential
// of a sum) that runs from j to i: for a decay of all channels the matrix of all pairs; for decays of
// channels in two factors that meet at the first token of the block of i, and pair by pair inside a block.
#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>

#include "fovea/core/memory.h"
#include "hwy/cache_control.h"
#include "kernels/cpu/tile-inl.h"
#include "kernels/linear_scan_args.h"

#if defined(FOVEA_KERNELS_CPU_LINEAR_SCAN_KEYS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_KERNELS_CPU_LINEAR_SCAN_KEYS_INL_H_
#undef FOVEA_KERNELS_CPU_LINEAR_SCAN_KEYS_INL_H_
#else
#define FOVEA_KERNELS_CPU_LINEAR_SCAN_KEYS_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {

/// Tokens of a block; chunks are padded to whole blocks with tokens that change nothing.
inline constexpr int64_t kScanBlock = 16;
inline constexpr int64_t kCacheLine = 64;
static_assert(kScanBlock % kLanes == 0);

HWY_INLINE int64_t scan_width(int64_t dim) {
  return round_up(std::max<int64_t>(dim, 1), std::max<int64_t>(kLanes, 4));
}

// ---- rows ----

/// y *= x, element by element; `width` is a multiple of kLanes.
HWY_INLINE void multiply_row(float* HWY_RESTRICT y, const float* HWY_RESTRICT x, int64_t width) {
  const Floats d;
  for (int64_t i = 0; i < width; i += kLanes)
    hn::StoreU(hn::Mul(hn::LoadU(d, y + i), hn::LoadU(d, x + i)), d, y + i);
}
HWY_INLINE void multiply_row(float* y, float factor, int64_t width) {
  const Floats d;
  const auto f = hn::Set(d, factor);
  for (int64_t i = 0; i < width; i += kLanes) hn::StoreU(hn::Mul(hn::LoadU(d, y + i), f), d, y + i);
}
/// y += x z and y += f x.
HWY_INLINE void add_products(float* HWY_RESTRICT y, const float* HWY_RESTRICT x, const float* HWY_RESTRICT z,
                             int64_t width) {
  const Floats d;
  for (int64_t i = 0; i < width; i += kLanes)
    hn::StoreU(hn::MulAdd(hn::LoadU(d, x + i), hn::LoadU(d, z + i), hn::LoadU(d, y + i)), d, y + i);
}
HWY_INLINE void add_multiple(float* HWY_RESTRICT y, float f, const float* HWY_RESTRICT x, int64_t width) {
  const Floats d;
  const auto factor = hn::Set(d, f);
  for (int64_t i = 0; i < width; i += kLanes)
    hn::StoreU(hn::MulAdd(factor, hn::LoadU(d, x + i), hn::LoadU(d, y + i)), d, y + i);
}
HWY_INLINE float dot(const float* x, const float* y, int64_t width) {
  const Floats d;
  auto sum = hn::Zero(d);
  for (int64_t i = 0; i < width; i += kLanes) sum = hn::MulAdd(hn::LoadU(d, x + i), hn::LoadU(d, y + i), sum);
  return hn::GetLane(hn::SumOfLanes(d, sum));
}
HWY_INLINE void exp_row(float* x, int64_t width) {
  const Floats d;
  for (int64_t i = 0; i < width; i += kLanes) hn::StoreU(exp_of(d, hn::LoadU(d, x + i)), d, x + i);
}

/// to[c * to_stride + r] = from[r * stride + c] for c < depth; zeros beside the rows up to a multiple of
/// kLanes. Rows must be readable, and `to` writable, up to the next multiple of 4; `zeros` has as many.
HWY_INLINE void transpose_tile(const float* from, int64_t rows, int64_t stride, int64_t depth,
                               const float* zeros, float* to, int64_t to_stride) {
  const float* pointers[kLanes];
  for (int64_t first = 0; first < rows; first += kLanes) {
    for (int64_t r = 0; r < kLanes; ++r) pointers[r] = first + r < rows ? from + (first + r) * stride : zeros;
    transpose_rows(pointers, depth, to + first, to_stride);
  }
}

/// to[rows, width] = factor * rows [first, first + count) of a tensor from `column` on, zeros to the next
/// block.
HWY_INLINE void load_tokens(const View& from, int64_t b, int64_t head, int64_t first, int64_t count,
                            int64_t column, int64_t columns, float factor, float* to, int64_t width) {
  for (int64_t t = 0; t < count; ++t, to += width)
    load_row(from.at(b, head, first + t) + column * size_of(from.dtype), from.dtype, columns, factor, to,
             width);
  std::fill(to, to + (round_up(count, kScanBlock) - count) * width, 0.0f);
}

/// Asks for the rows [first, first + count) of a tensor, as far as there are so many: products run long
/// enough for memory to bring what the next chunk loads.
HWY_INLINE void prefetch_tokens(const View& from, int64_t b, int64_t head, int64_t first, int64_t count,
                                int64_t length, int64_t column, int64_t columns) {
  const int64_t bytes = columns * size_of(from.dtype);
  for (int64_t t = first; t < std::min(first + count, length); ++t) {
    const char* row = from.at(b, head, t) + column * size_of(from.dtype);
    for (int64_t at = 0; at < bytes; at += kCacheLine) hwy::Prefetch(row + at);
  }
}

// ---- a block of 16 tokens on the diagonal, decays of channels ----

/// p_ij = sum_c x_ic w_ij,c k_jc for j < i (and j = i unless strict), 0 for other j. `decayed` holds a block
/// of rows.
HWY_NOINLINE inline void score_block(const float* x, const float* k, const float* a, int64_t width,
                                     bool strict, float* p, int64_t p_stride, float* decayed) {
  const Floats d;
  for (int64_t i = 0; i < kScanBlock; ++i, x += width, k += width, a += width, p += p_stride) {
    // Rows from i on in the last group of four are not keys yet; their sums are overwritten.
    for (int64_t j = 0; j < i; j += 4) {
      FloatVector sum[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
      float* rows = decayed + j * width;
      for (int64_t c = 0; c < width; c += kLanes) {
        const auto decay = hn::LoadU(d, a + c), query = hn::LoadU(d, x + c);
        for (int r = 0; r < 4; ++r) {
          const auto key = hn::Mul(hn::LoadU(d, rows + r * width + c), decay);
          hn::StoreU(key, d, rows + r * width + c);
          sum[r] = hn::MulAdd(query, key, sum[r]);
        }
      }
      sum_four(sum, p + j);
    }
    auto own = hn::Zero(d);
    for (int64_t c = 0; c < width; c += kLanes) {
      const auto key = hn::LoadU(d, k + c);
      hn::StoreU(key, d, decayed + i * width + c);
      own = hn::MulAdd(hn::LoadU(d, x + c), key, own);
    }
    p[i] = strict ? 0.0f : hn::GetLane(hn::SumOfLanes(d, own));
    std::fill(p + i + 1, p + kScanBlock, 0.0f);
  }
}

/// The gradients of score_block, for coefficients c_ij of j < i: to_i += sum_j c_ij w_ij k_j with the keys as
/// `from`, or, descending, to_j += sum_i c_ij w_ij x_i with the queries.
template <bool kDescending>
HWY_NOINLINE void blend_block(const float* c, int64_t c_stride, const float* from, const float* a,
                              int64_t width, float* to) {
  const Floats d;
  const auto token = [](int64_t step) { return kDescending ? kScanBlock - 1 - step : step; };
  for (int64_t x = 0; x < width; x += kLanes) {
    FloatVector decayed[kScanBlock];
    for (int64_t s = 0; s < kScanBlock; ++s) {
      const int64_t target = token(s);
      const auto decay =
          hn::LoadU(d, a + std::min(kScanBlock - 1, target + (kDescending ? 1 : 0)) * width + x);
      auto sum = hn::LoadU(d, to + target * width + x);
      for (int64_t t = 0; t < s; ++t) {
        const int64_t source = token(t);
        decayed[t] = hn::Mul(decayed[t], decay);
        const float weight = kDescending ? c[source * c_stride + target] : c[target * c_stride + source];
        sum = hn::MulAdd(hn::Set(d, weight), decayed[t], sum);
      }
      hn::StoreU(sum, d, to + target * width + x);
      decayed[s] = hn::LoadU(d, from + target * width + x);
    }
  }
}

// ---- the chunk ----

class ScanKeys {
 public:
  void reserve(const LinearScanArgs& args, int64_t chunk) {
    a_ = &args, chunk_ = chunk, width_ = scan_width(args.dim), depth_ = round_up(args.dim, 4);
    decays_of_ = {-1, -1, -1};
    keys_.reserve(chunk * width_);
    transposed_.reserve(depth_ * chunk);
    pairs_.reserve(chunk * chunk);
    if (args.decay == Decay::channel) {
      for (auto* rows : {&decay_, &from_block_, &to_block_}) rows->reserve(chunk * width_);
      for (auto* rows : {&blocks_, &before_, &after_}) rows->reserve(chunk / kScanBlock * width_);
      total_.reserve(width_);
      copies_.reserve(copy_offset(chunk / kScanBlock));
      stage_.reserve(kScanBlock * width_);
      decayed_.reserve(kScanBlock * width_);
      std::fill_n(decayed_.data(), kScanBlock * width_, 0.0f);
    } else {
      for (auto* values : {&from_start_, &to_end_, &logs_}) values->reserve(chunk);
    }
  }

  void load(int64_t b, int64_t kv, int64_t first, int64_t count) {
    rows_ = round_up(count, kScanBlock);
    load_tokens(a_->k, b, kv, first, count, 0, a_->dim, 1.0f, keys_.data(), width_);
    if (a_->decay == Decay::channel) {
      load_channel_decays(b, kv, first, count);
      copy_keys();
      return;
    }
    transpose_tile(keys(), rows_, width_, a_->dim, nullptr, transposed_.data(), chunk_);
    const std::array<int64_t, 3> decays_of{a_->decay == Decay::head ? kv : 0,
                                           a_->decay == Decay::token ? b : 0, count};
    if (a_->decay == Decay::token || decays_of != decays_of_) load_decays(b, kv, first, count);
    decays_of_ = decays_of;
  }

  int64_t rows() const { return rows_; }
  int64_t width() const { return width_; }
  int64_t chunk() const { return chunk_; }
  bool channels() const { return a_->decay == Decay::channel; }
  const float* keys() const { return keys_.data(); }
  float* keys() { return keys_.data(); }

  /// p [rows, chunk]: p_ij = sum_c x_ic w_ij,c k_jc for j < i (and j = i unless strict); 0 for other j up to
  /// the end of the block of i, not set behind it.
  void score(const float* x, bool strict, float* p) {
    for (int64_t r = 0; r < rows_; r += kScanBlock) {
      float* block = p + r * chunk_;
      const float* rows = x + r * width_;
      if (!channels()) {
        multiply({rows, width_, 1, transposed_.data(), chunk_, block, chunk_, kScanBlock, a_->dim, false},
                 r + kScanBlock);
        weigh_block(r, strict, block);
        continue;
      }
      std::copy(rows, rows + kScanBlock * width_, stage_.data());
      multiply_row(stage_.data(), from_block_.data() + r * width_, kScanBlock * width_);
      multiply({stage_.data(), width_, 1, copies_.data() + copy_offset(r / kScanBlock), r, block, chunk_,
                kScanBlock, a_->dim, false},
               r);
      score_block(rows, keys() + r * width_, decay_.data() + r * width_, width_, strict, block + r, chunk_,
                  decayed_.data());
    }
  }

  /// Multiplies the rows [r, r + 16) of p, up to the end of their block, by the decays between their tokens:
  /// not for decays of channels.
  void weigh_block(int64_t r, bool strict, float* block) const {
    for (int64_t i = 0; i < kScanBlock; ++i) {
      multiply_row(block + i * chunk_, pairs_.data() + (r + i) * chunk_, r + kScanBlock);
      if (strict) block[i * chunk_ + r + i] = 0;
    }
  }

  /// x_i *= the decay of all tokens up to i.
  void decay_from_start(float* x) const {
    if (a_->decay == Decay::none) return;
    for (int64_t i = 0; i < rows_; ++i, x += width_) {
      if (!channels()) {
        multiply_row(x, from_start_[i], width_);
        continue;
      }
      multiply_row(x, from_block_.data() + i * width_, width_);
      if (i >= kScanBlock) multiply_row(x, before_.data() + i / kScanBlock * width_, width_);
    }
  }

  /// x_j *= the decay of all tokens behind j.
  void decay_to_end(float* x) const {
    if (a_->decay == Decay::none) return;
    for (int64_t j = 0; j < rows_; ++j, x += width_) {
      if (!channels()) {
        multiply_row(x, to_end_[j], width_);
        continue;
      }
      multiply_row(x, to_block_.data() + j * width_, width_);
      if (j + kScanBlock < rows_) multiply_row(x, after_.data() + j / kScanBlock * width_, width_);
    }
  }

  /// The decay of the whole chunk, of the state's row `channel`.
  float total(int64_t channel) const { return channels() ? total_[channel] : chunk_decay_; }

  // ---- decays of channels, for gradients ----
  const float* decay(int64_t token) const { return decay_.data() + token * width_; }
  /// Of the tokens from the first of i's block to i, and from behind j to the last of its block.
  const float* from_block(int64_t token) const { return from_block_.data() + token * width_; }
  const float* to_block(int64_t token) const { return to_block_.data() + token * width_; }
  /// Of a whole block, and of all blocks before it.
  const float* block_decay(int64_t block) const { return blocks_.data() + block * width_; }
  const float* before(int64_t block) const { return before_.data() + block * width_; }

 private:
  // Copy r of the keys: [depth, 16 r], transposed, the tokens before block r decayed to its start.
  int64_t copy_offset(int64_t r) const { return depth_ * kScanBlock * (r * (r - 1) / 2); }

  void load_decays(int64_t b, int64_t kv, int64_t first, int64_t count) {
    const Floats d;
    const auto log_of = [&](int64_t t) {
      return t < count && a_->log_decay ? *a_->log_decay.at<float>(b, kv, first + t) : 0.0f;
    };
    double sum = 0;
    for (int64_t i = 0; i < rows_; ++i)
      from_start_[i] = static_cast<float>(sum += static_cast<double>(log_of(i)));
    sum = 0;
    for (int64_t j = rows_ - 1; j >= 0; --j) {
      to_end_[j] = static_cast<float>(sum);
      sum += static_cast<double>(log_of(j));
    }
    exp_row(from_start_.data(), rows_);
    exp_row(to_end_.data(), rows_);
    chunk_decay_ = rows_ > 0 ? from_start_[rows_ - 1] : 1.0f;
    // ln w_ij = ln w_i-1,j + ln a_i, and -inf for the pairs that do not meet.
    float* logs = logs_.data();
    std::fill_n(logs, rows_, -std::numeric_limits<float>::infinity());
    for (int64_t i = 0; i < rows_; ++i) {
      float* weights = pairs_.data() + i * chunk_;
      const auto own = hn::Set(d, log_of(i));
      logs[i] = -std::numeric_limits<float>::infinity();
      const int64_t end = i / kScanBlock * kScanBlock + kScanBlock;
      for (int64_t j = 0; j < end; j += kLanes) {
        const auto log = hn::Add(hn::LoadU(d, logs + j), own);
        hn::StoreU(log, d, logs + j);
        hn::StoreU(exp_of(d, log), d, weights + j);
      }
      logs[i] = 0, weights[i] = 1;
    }
  }

  void load_channel_decays(int64_t b, int64_t kv, int64_t first, int64_t count) {
    const Floats d;
    const auto one = hn::Set(d, 1.0f);
    load_tokens(a_->log_decay, b, kv, first, count, 0, a_->dim, 1.0f, decay_.data(), width_);
    const int64_t blocks = rows_ / kScanBlock;
    for (int64_t c = 0; c < width_; c += kLanes) {
      auto sum = hn::Zero(d), before = one;
      for (int64_t r = 0; r < blocks; ++r) {
        const int64_t begin = r * kScanBlock * width_ + c;
        hn::StoreU(before, d, before_.data() + r * width_ + c);
        auto block_sum = hn::Zero(d), product = one;
        for (int64_t i = 0; i < kScanBlock; ++i) {
          const int64_t at = begin + i * width_;
          const auto log = hn::LoadU(d, decay_.data() + at), decay = exp_of(d, log);
          block_sum = hn::Add(block_sum, log);
          product = hn::Mul(product, decay);
          hn::StoreU(decay, d, decay_.data() + at);
          hn::StoreU(product, d, from_block_.data() + at);
        }
        product = one;
        for (int64_t i = kScanBlock - 1; i >= 0; --i) {
          hn::StoreU(product, d, to_block_.data() + begin + i * width_);
          product = hn::Mul(product, hn::LoadU(d, decay_.data() + begin + i * width_));
        }
        const auto block = exp_of(d, block_sum);
        hn::StoreU(block, d, blocks_.data() + r * width_ + c);
        before = hn::Mul(before, block);
        sum = hn::Add(sum, block_sum);
      }
      hn::StoreU(exp_of(d, sum), d, total_.data() + c);
      auto after = one;
      for (int64_t r = blocks - 1; r >= 0; --r) {
        hn::StoreU(after, d, after_.data() + r * width_ + c);
        after = hn::Mul(after, hn::LoadU(d, blocks_.data() + r * width_ + c));
      }
    }
  }

  void copy_keys() {
    const int64_t blocks = rows_ / kScanBlock;
    for (int64_t r = 1; r < blocks; ++r) {
      const int64_t columns = r * kScanBlock, old = columns - kScanBlock;
      const float* earlier = copies_.data() + copy_offset(r - 1);
      float* to = copies_.data() + copy_offset(r);
      for (int64_t c = 0; c < a_->dim; ++c) {
        std::copy(earlier + c * old, earlier + (c + 1) * old, to + c * columns);
        multiply_row(to + c * columns, blocks_[(r - 1) * width_ + c], old);
      }
      std::copy(keys() + old * width_, keys() + columns * width_, stage_.data());
      multiply_row(stage_.data(), to_block_.data() + old * width_, kScanBlock * width_);
      transpose_tile(stage_.data(), kScanBlock, width_, a_->dim, nullptr, to + old, columns);
    }
  }

  const LinearScanArgs* a_ = nullptr;
  int64_t chunk_ = 0, width_ = 0, depth_ = 0, rows_ = 0;
  float chunk_decay_ = 1;
  std::array<int64_t, 3> decays_of_{};  // what the decays of one head were computed for
  memory::Buffer<float> keys_, transposed_, pairs_, from_start_, to_end_, logs_;
  memory::Buffer<float> decay_, from_block_, to_block_, blocks_, before_, after_, total_, copies_, stage_,
      decayed_;
};

}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
