// SPDX-License-Identifier: Apache-2.0
// From the weights and the running softmax of a row tile to its results. Included once per SIMD target.
#include <cmath>
#include <cstdint>

#include "hwy/contrib/math/math-inl.h"
#include "kernels/cpu/forward.h"
#include "kernels/cpu/softmax-inl.h"

#if defined(FOVEA_KERNELS_CPU_RESULTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOVEA_KERNELS_CPU_RESULTS_INL_H_
#undef FOVEA_KERNELS_CPU_RESULTS_INL_H_
#else
#define FOVEA_KERNELS_CPU_RESULTS_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {

/// C (=|+=) A B for weights A and values B over `width` columns. Where the values are not all finite, a row
/// must not multiply those that it does not see (weight 0).
HWY_INLINE void weigh_values(Product product, bool finite, int64_t width) {
  if (finite) return multiply(product, width);
  if (!product.accumulate)
    for (int64_t r = 0; r < product.rows; ++r) {
      float* row = product.c + r * product.c_stride;
      std::fill(row, row + width, 0.0f);
    }
  Product one = product;
  one.rows = one.depth = 1, one.accumulate = true;
  for (int64_t r = 0; r < product.rows; ++r)
    for (int64_t c = 0; c < product.depth; ++c) {
      one.a = product.a + r * product.a_row + c * product.a_depth;
      one.b = product.b + c * product.b_stride;
      one.c = product.c + r * product.c_stride;
      if (*one.a != 0.0f) multiply(one, width);
    }
}

/// logs = log2(sums), and -inf for 0; inverses = 1 / weights, and 0 for 0. All arrays hold whole vectors.
HWY_INLINE void finish_sums(const double* sums, const double* weights, int64_t count, double* logs,
                            double* inverses) {
  const hn::ScalableTag<double> d;
  const auto zero = hn::Zero(d);
  for (int64_t r = 0; r < count; r += static_cast<int64_t>(hn::Lanes(d))) {
    const auto sum = hn::LoadU(d, sums + r);
    const auto none = hn::Eq(sum, zero);
    const auto log = hn::IfThenElse(hn::IsNaN(sum), sum, hn::Log2(d, sum));
    hn::StoreU(hn::IfThenElse(none, hn::Set(d, -std::numeric_limits<double>::infinity()), log), d, logs + r);
    const auto weight = hn::LoadU(d, weights + r);
    hn::StoreU(hn::IfThenZeroElse(hn::Eq(weight, zero), hn::Div(hn::Set(d, 1.0), weight)), d, inverses + r);
  }
}

/// Normalises and stores the rows of a tile: o [rows, width] are the weighted sums of values. The sink is one
/// more term of the softmax. weight_sum(running) is the sum of the weights that the values were multiplied
/// with.
template <class WeightSum>
HWY_INLINE void finish_rows(const cpu::ForwardProblem& p, const cpu::RowTile& rows, const RunningRow* running,
                            const WeightSum& weight_sum, const float* o, int64_t width) {
  const AttentionArgs& a = p.args;
  constexpr int64_t kRows = 16;
  double maxima[kRows], sums[kRows] = {}, weights[kRows] = {}, factors[kRows], logs[kRows], inverses[kRows];
  const double infinity = std::numeric_limits<double>::infinity(), log2_e = 1 / std::log(2.0);
  int64_t h = 0, i = 0;  // of the next row within the tile
  for (int64_t row = 0; row < rows.rows(); row += kRows) {
    const int64_t count = std::min(kRows, rows.rows() - row);
    for (int64_t r = 0; r < count; ++r) {
      maxima[r] = running[row + r].maximum, sums[r] = running[row + r].sum, factors[r] = 1;
      weights[r] = weight_sum(running[row + r]);
      if (!a.sink || p.sum) continue;
      const double sink = static_cast<double>(a.sink[rows.head_of(row + r)]) * log2_e;
      const double top = std::max(maxima[r], sink);
      factors[r] = maxima[r] == -infinity ? 0 : std::exp2(maxima[r] - top);
      const double sink_weight = sink == -infinity ? 0 : std::exp2(sink - top);
      sums[r] = sums[r] * factors[r] + sink_weight;
      weights[r] = weights[r] * factors[r] + sink_weight;
      maxima[r] = top;
    }
    finish_sums(sums, weights, count, logs, inverses);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t head = rows.head + h, query = rows.query + i;
      const int64_t at = rows.batch * p.lse_batch + head * p.lse_head + query;
      double factor = 1;
      if (p.sum) {
        p.lse[at] = static_cast<float>(maxima[r] / log2_e);
        p.sum[at] = static_cast<float>(weights[r]);
      } else {
        p.lse[at] = static_cast<float>(sums[r] == 0 ? -infinity : (maxima[r] + logs[r]) / log2_e);
        factor = factors[r] * inverses[r];
      }
      store_row(o + (row + r) * width, a.dim_v, static_cast<float>(factor), p.o.at(rows.batch, head, query),
                p.o.dtype);
      if (++h == rows.heads) h = 0, ++i;
    }
  }
}

}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
