// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/attention.h"
#include "kernels/attention_args.h"
#include "kernels/cpu/backward.h"

namespace fovea::kernels {
namespace {

void check_shape(std::string_view caller, std::string_view name, const Tensor& tensor, const Shape& shape,
                 DType dtype) {
  require(tensor.defined() && tensor.shape() == shape && tensor.dtype() == dtype, caller, ": ", name,
          " must be ", name_of(dtype), shape.to_string(),
          tensor.defined() ? ", got " + tensor.describe() : "");
}

AttentionGradients backward(std::string_view caller, const Tensor& q, const Tensor& k, const Tensor& v,
                            const KeyPlan* plan, const AttentionResult& forward, const Tensor& d_o,
                            const AttentionParams& params, const Tensor& d_lse) {
  cpu::BackwardProblem problem{.args = attention_args(caller, q, k, v, params), .plan = plan};
  const AttentionArgs& a = problem.args;
  require(a.scores != ScoreArithmetic::int8, caller, ": gradients are not taken through int8 scores");
  if (plan) check(*plan, a.batch, a.heads_q, a.heads_kv, a.queries, a.keys);
  const Shape rows{a.batch, a.heads_q, a.queries};
  check_shape(caller, "o", forward.o, {a.batch, a.heads_q, a.queries, a.dim_v}, v.dtype());
  check_shape(caller, "lse", forward.lse, rows, DType::f32);
  check_shape(caller, "d_o", d_o, forward.o.shape(), v.dtype());
  const Tensor lse = forward.lse.contiguous();
  Tensor lse_gradient;
  if (d_lse.defined()) {
    check_shape(caller, "d_lse", d_lse, rows, DType::f32);
    lse_gradient = d_lse.contiguous();
    problem.d_lse = lse_gradient.data<float>();
  }
  problem.lse = lse.data<float>();
  problem.o = view_of(caller, "o", forward.o);
  problem.d_o = view_of(caller, "d_o", d_o);

  AttentionGradients result{Tensor::empty(q.shape(), q.dtype()), Tensor::empty(k.shape(), k.dtype()),
                            Tensor::empty(v.shape(), v.dtype()), Tensor(), Tensor()};
  problem.dq = view_of(caller, "dq", result.dq);
  problem.dk = view_of(caller, "dk", result.dk);
  problem.dv = view_of(caller, "dv", result.dv);
  if (params.sink.defined()) {
    result.dsink = Tensor::zeros({a.heads_q});
    problem.dsink = result.dsink.data<float>();
  }
  if (params.bias.defined()) {
    result.dbias = Tensor::zeros(params.bias.shape());
    problem.dbias = view_of(caller, "dbias", result.dbias);
  }
  cpu::run_backward(problem);
  return result;
}

}  // namespace

AttentionGradients flash_backward(const Tensor& q, const Tensor& k, const Tensor& v,
                                  const AttentionResult& forward, const Tensor& d_o,
                                  const AttentionParams& params, const Tensor& d_lse) {
  return backward("flash_backward", q, k, v, nullptr, forward, d_o, params, d_lse);
}

AttentionGradients plan_backward(const Tensor& q, const Tensor& k, const Tensor& v, const KeyPlan& plan,
                                 const AttentionResult& forward, const Tensor& d_o,
                                 const AttentionParams& params) {
  return backward("plan_backward", q, k, v, &plan, forward, d_o, params, {});
}

}  // namespace fovea::kernels
