// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/pooling.h"

#include <algorithm>

#include "fovea/core/thread_pool.h"
#include "kernels/cpu/dense_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/pooling.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

/// Reduces the rows of x [rows,n] channel by channel, four vectors at a time: chunk(i, width) where width is
/// the number of vectors, or 0 for a last partial one.
template <typename Chunk>
HWY_INLINE void for_channel_chunks(int64_t n, Chunk chunk) {
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) chunk(i, std::integral_constant<int, 4>());
  for (; i + kLanes <= n; i += kLanes) chunk(i, std::integral_constant<int, 1>());
  if (i < n) chunk(i, std::integral_constant<int, 0>());
}

/// The first `count` lanes; the others are zero and their memory is not touched.
template <typename T>
HWY_INLINE FloatVector load_tail(const T* x, int64_t count) {
  HWY_ALIGN float lanes[kLanes];
  load_row(x, count, 1.0f, lanes, kLanes);
  return hn::Load(Floats(), lanes);
}

/// Nothing behind the `count` lanes is written, not even with what was there: it may be another thread's.
HWY_INLINE void store_tail(FloatVector v, float* x, int64_t count) {
  HWY_ALIGN float lanes[kLanes];
  hn::Store(v, Floats(), lanes);
  std::copy_n(lanes, count, x);
}

template <typename T>
void mean_of_rows(const T* x, int64_t stride, int64_t rows, int64_t n, float* mean) {
  const Floats d;
  const FloatVector divisor = hn::Set(d, static_cast<float>(rows));
  for_channel_chunks(n, [&](int64_t i, auto width) HWY_ATTR {
    if constexpr (width() == 0) {
      FloatVector sum = hn::Zero(d);
      for (int64_t r = 0; r < rows; ++r) sum = hn::Add(sum, load_tail(x + r * stride + i, n - i));
      store_tail(hn::Div(sum, divisor), mean + i, n - i);
    } else {
      FloatVector sum[width()];
      for (auto& s : sum) s = hn::Zero(d);
      for (int64_t r = 0; r < rows; ++r)
        for (int c = 0; c < width(); ++c)
          sum[c] = hn::Add(sum[c], load_floats(x + r * stride + i + c * kLanes));
      for (int c = 0; c < width(); ++c) hn::StoreU(hn::Div(sum[c], divisor), d, mean + i + c * kLanes);
    }
  });
}

template <typename T>
void bounds_of_rows(const T* x, int64_t stride, int64_t rows, int64_t n, float* low, float* high) {
  const Floats d;
  for_channel_chunks(n, [&](int64_t i, auto width) HWY_ATTR {
    if constexpr (width() == 0) {
      FloatVector least = load_tail(x + i, n - i), most = least;
      for (int64_t r = 1; r < rows; ++r) {
        const FloatVector v = load_tail(x + r * stride + i, n - i);
        least = hn::Min(least, v);
        most = hn::Max(most, v);
      }
      store_tail(least, low + i, n - i);
      store_tail(most, high + i, n - i);
    } else {
      FloatVector least[width()], most[width()];
      for (int c = 0; c < width(); ++c) least[c] = most[c] = load_floats(x + i + c * kLanes);
      for (int64_t r = 1; r < rows; ++r)
        for (int c = 0; c < width(); ++c) {
          const FloatVector v = load_floats(x + r * stride + i + c * kLanes);
          least[c] = hn::Min(least[c], v);
          most[c] = hn::Max(most[c], v);
        }
      for (int c = 0; c < width(); ++c) {
        hn::StoreU(least[c], d, low + i + c * kLanes);
        hn::StoreU(most[c], d, high + i + c * kLanes);
      }
    }
  });
}

void mean_f32(const float* x, int64_t stride, int64_t rows, int64_t n, float* mean) {
  mean_of_rows(x, stride, rows, n, mean);
}
void mean_f16(const Half* x, int64_t stride, int64_t rows, int64_t n, float* mean) {
  mean_of_rows(x, stride, rows, n, mean);
}
void mean_bf16(const BFloat16* x, int64_t stride, int64_t rows, int64_t n, float* mean) {
  mean_of_rows(x, stride, rows, n, mean);
}
void bounds_f32(const float* x, int64_t stride, int64_t rows, int64_t n, float* low, float* high) {
  bounds_of_rows(x, stride, rows, n, low, high);
}
void bounds_f16(const Half* x, int64_t stride, int64_t rows, int64_t n, float* low, float* high) {
  bounds_of_rows(x, stride, rows, n, low, high);
}
void bounds_bf16(const BFloat16* x, int64_t stride, int64_t rows, int64_t n, float* low, float* high) {
  bounds_of_rows(x, stride, rows, n, low, high);
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
namespace {

HWY_EXPORT(mean_f32);
HWY_EXPORT(mean_f16);
HWY_EXPORT(mean_bf16);
HWY_EXPORT(bounds_f32);
HWY_EXPORT(bounds_f16);
HWY_EXPORT(bounds_bf16);

/// Blocks of tokens of x [B,H,T,D].
struct Blocks {
  Tensor x;
  int64_t block, count;

  Blocks(const Tensor& any, int64_t size, const char* kernel) : block(size) {
    require(any.rank() == 4 && is_float(any.dtype()), kernel, ": expected [B,H,T,D] of a float type, got ",
            any.describe());
    require(block >= 1, kernel, ": a block of ", block, " tokens");
    x = cpu::with_dense_rows(any);
    count = x.dim(2) == 0 ? 0 : 1 + (x.dim(2) - 1) / block;
  }
  int64_t tasks() const { return x.dim(3) == 0 ? 0 : x.dim(0) * x.dim(1) * count; }
  int64_t rows(int64_t task) const { return std::min(block, x.dim(2) - task % count * block); }
  template <typename T>
  const T* first(int64_t task) const {
    const int64_t head = task / count;
    return x.data<T>() + head / x.dim(1) * x.stride(0) + head % x.dim(1) * x.stride(1) +
           task % count * block * x.stride(2);
  }
  Tensor output() const { return Tensor::empty({x.dim(0), x.dim(1), count, x.dim(3)}); }
};

}  // namespace

Tensor block_means(const Tensor& x, int64_t block) {
  const Blocks blocks(x, block, "block_means");
  const Tensor means = blocks.output();
  const int64_t stride = blocks.x.stride(2), n = x.dim(3);
  parallel_for(blocks.tasks(), [&](int64_t task, int) {
    const int64_t rows = blocks.rows(task);
    float* out = means.data<float>() + task * n;
    switch (x.dtype()) {
      case DType::f16:
        return HWY_DYNAMIC_DISPATCH(mean_f16)(blocks.first<Half>(task), stride, rows, n, out);
      case DType::bf16:
        return HWY_DYNAMIC_DISPATCH(mean_bf16)(blocks.first<BFloat16>(task), stride, rows, n, out);
      default:
        return HWY_DYNAMIC_DISPATCH(mean_f32)(blocks.first<float>(task), stride, rows, n, out);
    }
  });
  return means;
}

Bounds page_bounds(const Tensor& k, int64_t page_size) {
  const Blocks blocks(k, page_size, "page_bounds");
  const Bounds bounds{blocks.output(), blocks.output()};
  const int64_t stride = blocks.x.stride(2), n = k.dim(3);
  parallel_for(blocks.tasks(), [&](int64_t task, int) {
    const int64_t rows = blocks.rows(task);
    float* low = bounds.low.data<float>() + task * n;
    float* high = bounds.high.data<float>() + task * n;
    switch (k.dtype()) {
      case DType::f16:
        return HWY_DYNAMIC_DISPATCH(bounds_f16)(blocks.first<Half>(task), stride, rows, n, low, high);
      case DType::bf16:
        return HWY_DYNAMIC_DISPATCH(bounds_bf16)(blocks.first<BFloat16>(task), stride, rows, n, low, high);
      default:
        return HWY_DYNAMIC_DISPATCH(bounds_f32)(blocks.first<float>(task), stride, rows, n, low, high);
    }
  });
  return bounds;
}

}  // namespace fovea::kernels
#endif  // HWY_ONCE
