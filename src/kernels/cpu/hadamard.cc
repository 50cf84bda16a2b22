// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/hadamard.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "fovea/core/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/hadamard.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using DF = hn::ScalableTag<float>;
using DI = hn::RebindToSigned<DF>;
using VF = hn::Vec<DF>;

/// Butterflies between lanes i and i ^ h of each of `kVectors` vectors, h = 1, 2, .. below min(n, lanes).
template <int kVectors>
HWY_INLINE void within_vectors(VF (&v)[kVectors], int64_t n) {
  const DF d;
  const DI di;
  const auto lanes = hn::Iota(di, 0);
  const int64_t limit = std::min(n, static_cast<int64_t>(hn::Lanes(d)));
  for (int64_t h = 1; h < limit; h *= 2) {
    const auto bit = hn::Set(di, static_cast<int32_t>(h));
    const auto partner = hn::IndicesFromVec(d, hn::Xor(lanes, bit));
    const auto upper = hn::RebindMask(d, hn::Ne(hn::And(lanes, bit), hn::Zero(di)));
    const auto sign = hn::IfThenElse(upper, hn::Set(d, -1.0f), hn::Set(d, 1.0f));
    for (auto& x : v) x = hn::MulAdd(x, sign, hn::TableLookupLanes(x, partner));
  }
}

/// All butterflies inside a block of kVectors vectors.
template <int kVectors>
HWY_INLINE void transform_block(float* x, int64_t n, VF factor) {
  const DF d;
  const size_t lanes = hn::Lanes(d);
  VF v[kVectors];
  for (int i = 0; i < kVectors; ++i) v[i] = hn::Mul(hn::LoadU(d, x + static_cast<size_t>(i) * lanes), factor);
  within_vectors<kVectors>(v, n);
  for (int h = 1; h < kVectors; h *= 2)
    for (int i = 0; i < kVectors; ++i) {
      if ((i & h) != 0) continue;
      const VF a = v[i], b = v[i + h];
      v[i] = hn::Add(a, b);
      v[i + h] = hn::Sub(a, b);
    }
  for (int i = 0; i < kVectors; ++i) hn::StoreU(v[i], d, x + static_cast<size_t>(i) * lanes);
}

/// Butterflies between x[i] and x[i + h] for h = from, 2 from, .. below n; from is a multiple of the lanes.
HWY_INLINE void between_blocks(float* x, int64_t n, int64_t from) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t h = from;
  for (; 2 * h < n; h *= 4)
    for (int64_t base = 0; base < n; base += 4 * h)
      for (int64_t i = base; i < base + h; i += lanes) {
        const VF a = hn::LoadU(d, x + i), b = hn::LoadU(d, x + i + h), c = hn::LoadU(d, x + i + 2 * h),
                 e = hn::LoadU(d, x + i + 3 * h);
        const VF s0 = hn::Add(a, b), d0 = hn::Sub(a, b), s1 = hn::Add(c, e), d1 = hn::Sub(c, e);
        hn::StoreU(hn::Add(s0, s1), d, x + i);
        hn::StoreU(hn::Add(d0, d1), d, x + i + h);
        hn::StoreU(hn::Sub(s0, s1), d, x + i + 2 * h);
        hn::StoreU(hn::Sub(d0, d1), d, x + i + 3 * h);
      }
  if (h < n)
    for (int64_t i = 0; i < h; i += lanes) {
      const VF a = hn::LoadU(d, x + i), b = hn::LoadU(d, x + i + h);
      hn::StoreU(hn::Add(a, b), d, x + i);
      hn::StoreU(hn::Sub(a, b), d, x + i + h);
    }
}

/// `count` floats, a whole number of runs of n.
void transform_runs(float* x, int64_t count, int64_t n) {
  const DF d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const VF factor = hn::Set(d, static_cast<float>(1.0 / std::sqrt(static_cast<double>(n))));
  if (n >= 8 * lanes) {
    for (int64_t run = 0; run < count; run += n) {
      for (int64_t i = 0; i < n; i += 8 * lanes) transform_block<8>(x + run + i, n, factor);
      between_blocks(x + run, n, 8 * lanes);
    }
    return;
  }
  int64_t i = 0;
  if (n == 4 * lanes)
    for (; i < count; i += n) transform_block<4>(x + i, n, factor);
  else if (n == 2 * lanes)
    for (; i < count; i += n) transform_block<2>(x + i, n, factor);
  for (; i + lanes <= count; i += lanes) transform_block<1>(x + i, n, factor);
  if (i == count) return;
  HWY_ALIGN float tail[hn::MaxLanes(d)] = {};
  std::copy(x + i, x + count, tail);
  transform_block<1>(tail, n, factor);
  std::copy(tail, tail + (count - i), x + i);
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
namespace {

HWY_EXPORT(transform_runs);

/// About as many floats as a task is worth.
constexpr int64_t kFloatsPerTask = 16384;

}  // namespace

void hadamard_rows(const Tensor& x, int64_t n) {
  require(x.rank() >= 1 && x.dtype() == DType::f32, "hadamard_rows: x is ", x, ", expected f32 [...,N]");
  const int64_t channels = x.dim(-1);
  require(n >= 1 && std::has_single_bit(static_cast<uint64_t>(n)) && channels % n == 0,
          "hadamard_rows: n = ", n, " is not a power of two that divides the ", channels, " channels of x");
  if (x.size() == 0) return;
  if (!x.is_contiguous()) {
    // Rows of every leading index in turn; the outermost axis is walked here, the rest recursively.
    require(x.rank() > 1, "hadamard_rows: the last axis of x is not contiguous");
    for (int64_t i = 0; i < x.dim(0); ++i) hadamard_rows(x.select(0, i), n);
    return;
  }
  auto* data = x.data<float>();
  const int64_t share = std::max(n, kFloatsPerTask / n * n);
  parallel_for((x.size() + share - 1) / share, [&](int64_t task, int) {
    HWY_DYNAMIC_DISPATCH(transform_runs)(data + task * share, std::min(share, x.size() - task * share), n);
  });
}

}  // namespace fovea::kernels
#endif  // HWY_ONCE
