// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/elementwise.h"

#include "kernels/cpu/parallel_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// x / (1 + exp(-beta x)) * gate
template <class D>
HWY_INLINE void silu_vector(D d, const float* x, const float* gate, float beta, float* y) {
  const auto v = hn::LoadU(d, x);
  const auto denominator = hn::Add(hn::Set(d, 1.0f), exp_of(d, hn::Mul(v, hn::Set(d, -beta))));
  const auto silu = hn::Div(v, denominator);
  hn::StoreU(gate ? hn::Mul(silu, hn::LoadU(d, gate)) : silu, d, y);
}

void silu_run(const float* x, const float* gate, float beta, float* y, int64_t count) {
  const HWY_FULL(float) d;
  const hn::CappedTag<float, 1> d1;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) silu_vector(d, x + i, gate ? gate + i : nullptr, beta, y + i);
  for (; i < count; ++i) silu_vector(d1, x + i, gate ? gate + i : nullptr, beta, y + i);
}

void add_run(const float* x, float* y, int64_t count) {
  const HWY_FULL(float) d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    hn::StoreU(hn::Add(hn::LoadU(d, y + i), hn::LoadU(d, x + i)), d, y + i);
  for (; i < count; ++i) y[i] += x[i];
}

}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
namespace {

HWY_EXPORT(silu_run);
HWY_EXPORT(add_run);

void check_pair(const Tensor& x, const Tensor& y, const char* name) {
  require(x.dtype() == DType::f32 && y.dtype() == DType::f32 && x.shape() == y.shape() && x.is_contiguous() &&
              y.is_contiguous(),
          name, ": ", x.describe(), " and ", y.describe(), ", expected contiguous f32 of one shape");
}

// Runs of at most this many elements: a multiple of every vector length, so that no element's place depends
// on the number of threads.
constexpr int64_t kRun = 1 << 14;

template <typename Body>
void over_runs(int64_t count, int64_t work, const Body& body) {
  cpu::parallel_rows((count + kRun - 1) / kRun, work * kRun, [&](int64_t begin, int64_t end, int) {
    for (int64_t at = begin * kRun; at < std::min(count, end * kRun); at += kRun)
      body(at, std::min(kRun, count - at));
  });
}

}  // namespace

void silu_multiply(const Tensor& x, const Tensor& gate, const Tensor& y, float beta) {
  check_pair(x, y, "silu_multiply");
  if (gate) check_pair(x, gate, "silu_multiply");
  const float* from = x.data<float>();
  const float* factor = gate ? gate.data<float>() : nullptr;
  float* const to = y.data<float>();
  over_runs(x.size(), 2, [&](int64_t at, int64_t count) {
    HWY_DYNAMIC_DISPATCH(silu_run)(from + at, factor ? factor + at : nullptr, beta, to + at, count);
  });
}

void add_in_place(const Tensor& y, const Tensor& x) {
  check_pair(x, y, "add_in_place");
  const float* from = x.data<float>();
  float* const to = y.data<float>();
  over_runs(x.size(), 1, [&](int64_t at, int64_t count) {
    HWY_DYNAMIC_DISPATCH(add_run)(from + at, to + at, count);
  });
}

}  // namespace fovea::kernels
#endif  // HWY_ONCE
