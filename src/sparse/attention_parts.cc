// SPDX-License-Identifier: Apache-2.0
#include "fovea/sparse/attention_parts.h"

#include <algorithm>
#include <limits>

#include "fovea/core/thread_pool.h"
#include "fovea/kernels/elementwise.h"

namespace fovea::sparse {
namespace {

using kernels::AttentionGradients;
using kernels::AttentionResult;
using kernels::KeyPlan;

// The views a part works on. A single query head takes its own kv head along.
struct PartViews {
  int64_t kv_begin, kv_end;
  Tensor q, k, v;

  PartViews(const AttentionPart& part, const Tensor& all_q, const Tensor& all_k, const Tensor& all_v) {
    const int64_t group = all_q.dim(1) / all_k.dim(1);
    kv_begin = part.head_begin / group;
    kv_end = (part.head_end + group - 1) / group;
    q = part.rows.of(all_q.slice(1, part.head_begin, part.head_end));
    k = part.keys.of(all_k.slice(1, kv_begin, kv_end));
    v = part.keys.of(all_v.slice(1, kv_begin, kv_end));
  }
  Tensor rows_of(const AttentionPart& part, const Tensor& x) const {
    return part.rows.of(x.slice(1, part.head_begin, part.head_end));
  }
};

KeyPlan column_plan(const std::vector<int32_t>& columns, int64_t rows, int64_t keys) {
  KeyPlan plan;
  plan.block_q = std::max<int64_t>(rows, 1);
  plan.queries = rows;
  plan.keys = keys;
  plan.range_offsets.assign(static_cast<size_t>(plan.lists() + 1), 0);
  plan.column_offsets.assign(static_cast<size_t>(plan.lists() + 1), 0);
  if (plan.lists() > 0) plan.column_offsets.back() = static_cast<int64_t>(columns.size());
  plan.columns = columns;
  return plan;
}

AttentionResult run_part(const AttentionPart& part, const PartViews& views) {
  const kernels::AttentionParams params{.visible = part.visible};
  if (!part.columns) return kernels::flash_forward(views.q, views.k, views.v, params);
  return kernels::plan_forward(views.q, views.k, views.v,
                               column_plan(*part.columns, views.q.dim(2), views.k.dim(2)), params);
}

AttentionResult run_layer(const AttentionLayer& layer, const Tensor& q, const Tensor& k, const Tensor& v) {
  AttentionResult result{
      Tensor::zeros({q.dim(0), q.dim(1), q.dim(2), v.dim(3)}),
      Tensor::full({q.dim(0), q.dim(1), q.dim(2)}, -std::numeric_limits<float>::infinity())};
  auto run = [&](int64_t index) {
    const AttentionPart& part = layer[static_cast<size_t>(index)];
    if (part.rows.empty() || part.keys.empty()) return;
    const PartViews views(part, q, k, v);
    const auto found = run_part(part, views);
    views.rows_of(part, result.o).copy_from(found.o.to(DType::f32));
    views.rows_of(part, result.lse).copy_from(found.lse);
  };
  const auto parts = static_cast<int64_t>(layer.size());
  // Many small parts share the threads among them; few large ones use the threads inside.
  if (parts >= 4 * threads())
    parallel_for(parts, [&](int64_t part, int) { run(part); });
  else
    for (int64_t part = 0; part < parts; ++part) run(part);
  return result;
}

void add_into(const Tensor& total, const Tensor& part) {
  for (int64_t b = 0; b < total.dim(0); ++b)
    for (int64_t h = 0; h < total.dim(1); ++h)
      for (int64_t i = 0; i < total.dim(2); ++i)
        kernels::add_in_place(total.select(0, b).select(0, h).select(0, i),
                              part.select(0, b).select(0, h).select(0, i));
}

}  // namespace

AttentionResult attend_layers(const Tensor& q, const Tensor& k, const Tensor& v,
                              const std::vector<AttentionLayer>& layers) {
  std::vector<AttentionResult> results;
  for (const auto& layer : layers) results.push_back(run_layer(layer, q, k, v));
  AttentionResult merged = results.size() == 1 ? results.front() : kernels::merge(results);
  merged.o = merged.o.to(v.dtype());
  return merged;
}

AttentionGradients attend_layers_backward(const Tensor& q_any, const Tensor& k_any, const Tensor& v_any,
                                          const Tensor& d_o_any, const std::vector<AttentionLayer>& layers) {
  // Sums over parts are taken in f32 whatever the storage type.
  const Tensor q = q_any.to(DType::f32), k = k_any.to(DType::f32), v = v_any.to(DType::f32),
               d_o = d_o_any.to(DType::f32);
  const AttentionResult forward = attend_layers(q, k, v, layers);
  AttentionGradients total{
      Tensor::zeros(q.shape()), Tensor::zeros(k.shape()), Tensor::zeros(v.shape()), {}, {}};
  for (const auto& layer : layers)
    for (const auto& part : layer) {
      if (part.rows.empty() || part.keys.empty()) continue;
      const PartViews views(part, q, k, v);
      const kernels::AttentionParams params{.visible = part.visible};
      const AttentionResult rows{views.rows_of(part, forward.o), views.rows_of(part, forward.lse)};
      const Tensor d_rows = views.rows_of(part, d_o);
      const auto found =
          part.columns ? kernels::plan_backward(views.q, views.k, views.v,
                                                column_plan(*part.columns, views.q.dim(2), views.k.dim(2)),
                                                rows, d_rows, params)
                       : kernels::flash_backward(views.q, views.k, views.v, rows, d_rows, params);
      add_into(views.rows_of(part, total.dq), found.dq);
      add_into(part.keys.of(total.dk.slice(1, views.kv_begin, views.kv_end)), found.dk);
      add_into(part.keys.of(total.dv.slice(1, views.kv_begin, views.kv_end)), found.dv);
    }
  total.dq = total.dq.to(q_any.dtype());
  total.dk = total.dk.to(k_any.dtype());
  total.dv = total.dv.to(v_any.dtype());
  return total;
}

}  // namespace fovea::sparse
