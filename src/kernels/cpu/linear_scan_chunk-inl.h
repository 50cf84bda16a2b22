// SPDX-License-Identifier: Apache-2.0
// One chunk of a linear scan: what its tokens write and how the state moves on. Included once per SIMD
// target.
//
// With x_i = -k_i, w as in linear_scan_keys-inl.h, decayed rows x~_i = x_i prod_{m<=i} a_m and k^_j = k_j
// prod_{m>j} a_m, the delta rule's errors e_t = v_t - k_t S' solve a unit lower triangular system:
//   E = V + X~ S + A U      U = diag(beta) E      A_ij = sum_c x_ic w_ij,c k_jc, j < i
// (the additive rule has E = V), and
//   S <- Diag(prod a) S + K^^T U
#include <array>
#include <cstdint>

#include "kernels/cpu/linear_scan_keys-inl.h"

#if defined(FOVEA_KERNELS_CPU_LINEAR_SCAN_CHUNK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_KERNELS_CPU_LINEAR_SCAN_CHUNK_INL_H_
#undef FOVEA_KERNELS_CPU_LINEAR_SCAN_CHUNK_INL_H_
#else
#define FOVEA_KERNELS_CPU_LINEAR_SCAN_CHUNK_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {

/// Inside a block of 16 rows, in order: e_i += sum_{j<i} a_ij u_j, u_i = beta_i e_i. Descending, with the
/// transposed matrix: e_j += sum_{i>j} a_ij u_i, u_j = beta_j e_j. `beta` null: 1, and `u` may be `e`.
template <bool kDescending, int kVectors>
HWY_NOINLINE void substitute_columns(const float* a, int64_t a_stride, const float* beta, float* e, float* u,
                                     int64_t stride) {
  const Floats d;
  const auto token = [](int64_t step) { return kDescending ? kScanBlock - 1 - step : step; };
  for (int64_t s = 0; s < kScanBlock; ++s) {
    const int64_t target = token(s);
    FloatVector sum[kVectors];
    for (int v = 0; v < kVectors; ++v) sum[v] = hn::LoadU(d, e + target * stride + v * kLanes);
    for (int64_t t = 0; t < s; ++t) {
      const int64_t source = token(t);
      const auto weight =
          hn::Set(d, kDescending ? a[source * a_stride + target] : a[target * a_stride + source]);
      for (int v = 0; v < kVectors; ++v)
        sum[v] = hn::MulAdd(weight, hn::LoadU(d, u + source * stride + v * kLanes), sum[v]);
    }
    const auto factor = hn::Set(d, beta ? beta[target] : 1.0f);
    for (int v = 0; v < kVectors; ++v) {
      hn::StoreU(sum[v], d, e + target * stride + v * kLanes);
      hn::StoreU(hn::Mul(factor, sum[v]), d, u + target * stride + v * kLanes);
    }
  }
}

template <bool kDescending>
HWY_INLINE void substitute_block(const float* a, int64_t a_stride, const float* beta, float* e, float* u,
                                 int64_t stride) {
  int64_t c = 0;
  for (; c + 4 * kLanes <= stride; c += 4 * kLanes)
    substitute_columns<kDescending, 4>(a, a_stride, beta, e + c, u + c, stride);
  for (; c < stride; c += kLanes) substitute_columns<kDescending, 1>(a, a_stride, beta, e + c, u + c, stride);
}

class ScanChunk {
 public:
  /// `width_v` is a multiple of kLanes.
  void reserve(const LinearScanArgs& args, int64_t chunk, int64_t width_v) {
    a_ = &args, width_v_ = width_v;
    keys_.reserve(args, chunk);
    errors_.reserve(chunk * width_v);
    if (args.beta) {
      writes_.reserve(chunk * width_v);
      beta_.reserve(chunk);
    }
    if (!args.delta) return;
    readers_.reserve(chunk * keys_.width());
    system_.reserve(chunk * chunk);
  }

  /// Tokens [first, first + count) and columns [column, column + columns) of their values.
  void load(int64_t b, int64_t kv, int64_t first, int64_t count, int64_t column, int64_t columns) {
    keys_.load(b, kv, first, count);
    load_tokens(a_->v, b, kv, first, count, column, columns, 1.0f, errors_.data(), width_v_);
    if (!a_->beta) return;
    for (int64_t t = 0; t < count; ++t) beta_[t] = *a_->beta.at<float>(b, kv, first + t);
    std::fill(beta_.data() + count, beta_.data() + keys_.rows(), 0.0f);
  }

  ScanKeys& keys() { return keys_; }
  /// E and U, [rows, width_v], after `write`.
  float* errors() const { return errors_.data(); }
  float* writes() const { return a_->beta ? writes_.data() : errors_.data(); }
  /// null: all 1.
  const float* beta() const { return a_->beta ? beta_.data() : nullptr; }
  /// X and A of the delta rule, after `write`.
  float* readers() const { return readers_.data(); }
  const float* system() const { return system_.data(); }

  /// What the tokens write, given the state before them.
  void write(const float* state) {
    const int64_t rows = keys_.rows(), width = keys_.width(), chunk = keys_.chunk();
    float *e = errors(), *u = writes();
    if (!a_->delta) {
      if (!a_->beta) return;
      std::copy(e, e + rows * width_v_, u);
      for (int64_t t = 0; t < rows; ++t) multiply_row(u + t * width_v_, beta_[t], width_v_);
      return;
    }
    std::copy(keys_.keys(), keys_.keys() + rows * width, readers());
    multiply_row(readers(), -1.0f, rows * width);
    keys_.score(readers(), true, system_.data());
    keys_.decay_from_start(readers());
    multiply({readers(), width, 1, state, width_v_, e, width_v_, rows, a_->dim, true}, width_v_);
    for (int64_t r = 0; r < rows; r += kScanBlock) {
      const float* a = system_.data() + r * chunk;
      multiply({a, chunk, 1, u, width_v_, e + r * width_v_, width_v_, kScanBlock, r, true}, width_v_);
      substitute_block<false>(a + r, chunk, beta_at(r), e + r * width_v_, u + r * width_v_, width_v_);
    }
  }

  /// From dU to dR, the gradient of E's right-hand side, in place, and dX = diag(beta) dR, that of E:
  ///   dR = dU + A^T dX
  void write_backward(float* d_errors, float* d_writes) const {
    const int64_t rows = keys_.rows(), chunk = keys_.chunk();
    for (int64_t r = rows - kScanBlock; a_->delta && r >= 0; r -= kScanBlock) {
      const float* a = system_.data() + r * chunk + r;
      const int64_t behind = r + kScanBlock;
      multiply({a + kScanBlock * chunk, 1, chunk, d_writes + behind * width_v_, width_v_,
                d_errors + r * width_v_, width_v_, kScanBlock, rows - behind, true},
               width_v_);
      substitute_block<true>(a, chunk, beta_at(r), d_errors + r * width_v_, d_writes + r * width_v_,
                             width_v_);
    }
    if (a_->delta) return;
    for (int64_t t = 0; t < rows; ++t) {
      std::copy(d_errors + t * width_v_, d_errors + (t + 1) * width_v_, d_writes + t * width_v_);
      if (a_->beta) multiply_row(d_writes + t * width_v_, beta_[t], width_v_);
    }
  }

  /// The state after the chunk; `keys` are those of this chunk decayed to its end.
  void advance(const float* keys, float* state) const {
    for (int64_t c = 0; a_->decay != Decay::none && c < a_->dim; ++c)
      multiply_row(state + c * width_v_, keys_.total(c), width_v_);
    multiply({keys, 1, keys_.width(), writes(), width_v_, state, width_v_, a_->dim, keys_.rows(), true},
             width_v_);
  }

 private:
  const float* beta_at(int64_t token) const { return a_->beta ? beta_.data() + token : nullptr; }

  const LinearScanArgs* a_ = nullptr;
  int64_t width_v_ = 0;
  ScanKeys keys_;
  memory::Buffer<float> errors_, writes_, beta_, readers_, system_;
};

}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
