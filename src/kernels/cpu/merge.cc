// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/merge.h"

#include <cmath>
#include <limits>

#include "fovea/core/memory.h"
#include "fovea/core/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/merge.cc"
#include "hwy/foreach_target.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

using cpu::MergePart;
using cpu::MergeProblem;

// L = log sum_n e^lse_n, o = sum_n e^(lse_n - L) o_n, in two passes over lse so that nothing overflows.
void merge_row(const MergeProblem& p, int64_t b, int64_t h, int64_t i, float* sum, float* part) {
  const Floats d;
  const int64_t row = (b * p.heads + h) * p.queries + i, width = round_up(p.dim_v, kLanes);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  double top = -kInfinity;
  for (const MergePart& n : p.parts) top = std::max(top, static_cast<double>(n.lse[row]));
  double total = 0;
  for (const MergePart& n : p.parts)
    if (n.lse[row] != -kInfinity) total += std::exp(static_cast<double>(n.lse[row]) - top);
  const double lse = total == 0 ? -kInfinity : top + std::log(total);
  p.lse[row] = static_cast<float>(lse);
  std::fill(sum, sum + width, 0.0f);
  for (const MergePart& n : p.parts) {
    if (n.lse[row] == -kInfinity) continue;
    const auto weight = hn::Set(d, static_cast<float>(std::exp(static_cast<double>(n.lse[row]) - lse)));
    load_row(n.o.at(b, h, i), n.o.dtype, p.dim_v, 1.0f, part, width);
    for (int64_t c = 0; c < width; c += kLanes)
      hn::StoreU(hn::MulAdd(weight, hn::LoadU(d, part + c), hn::LoadU(d, sum + c)), d, sum + c);
  }
  store_row(sum, p.dim_v, 1.0f, p.o.at(b, h, i), p.o.dtype);
}

void merge_rows(const MergeProblem& p) {
  constexpr int64_t kRowsPerTask = 64;
  const int64_t rows = p.batch * p.heads * p.queries, width = round_up(p.dim_v, kLanes);
  memory::Buffer<float> scratch(2 * width * threads());
  parallel_for((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task, int worker) {
    float* sum = scratch.data() + 2 * width * worker;
    for (int64_t row = task * kRowsPerTask; row < std::min(rows, (task + 1) * kRowsPerTask); ++row)
      merge_row(p, row / p.queries / p.heads, row / p.queries % p.heads, row % p.queries, sum, sum + width);
  });
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
HWY_EXPORT(merge_rows);

void cpu::run_merge(const MergeProblem& problem) { HWY_DYNAMIC_DISPATCH(merge_rows)(problem); }

}  // namespace fovea::kernels
#endif
