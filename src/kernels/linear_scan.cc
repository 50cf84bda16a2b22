// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/linear_scan.h"

#include <string>

#include "fovea/core/memory.h"
#include "kernels/cpu/linear_scan.h"

namespace fovea::kernels {
namespace {

constexpr int64_t kLargestChunk = 256;

std::string described(const Tensor& tensor) { return tensor.defined() ? tensor.describe() : "nothing"; }

View f32_view(std::string_view caller, std::string_view name, const Tensor& tensor, const Shape& shape) {
  require(tensor.defined() && tensor.dtype() == DType::f32 && tensor.shape() == shape, caller, ": ", name,
          " must be f32", shape.to_string(), ", got ", described(tensor));
  if (shape.rank() == 4) return view_of(caller, name, tensor);
  return view_of(caller, name, tensor.unsqueeze(3));
}

void set_decay(std::string_view caller, const Tensor& decay, LinearScanArgs& a) {
  if (!decay.defined()) return;
  const Shape tokens{a.batch, a.heads_kv, a.length}, channels{a.batch, a.heads_kv, a.length, a.dim};
  if (decay.rank() == 1) {
    require(decay.dtype() == DType::f32 && decay.dim(0) == a.heads_kv, caller, ": log_decay must be f32[",
            a.heads_kv, "], one for each kv head, got ", decay.describe());
    a.decay = Decay::head;
    a.log_decay = {decay.raw(), DType::f32, 0, decay.stride(0), 0};
    return;
  }
  a.decay = decay.rank() == 4 ? Decay::channel : Decay::token;
  a.log_decay = f32_view(caller, "log_decay", decay, decay.rank() == 4 ? channels : tokens);
}

void set_keys(std::string_view caller, const Tensor& k, const Tensor& v, LinearScanArgs& a) {
  a.k = view_of(caller, "k", k);
  a.v = view_of(caller, "v", v);
  a.batch = k.dim(0), a.heads_kv = k.dim(1), a.length = k.dim(2), a.dim = k.dim(3), a.dim_v = v.dim(3);
  require(is_float(k.dtype()) && v.dtype() == k.dtype(), caller,
          ": q, k and v must share one of f32, f16, bf16, got k ", k.describe(), " and v ", v.describe());
  require(v.dim(0) == a.batch && v.dim(1) == a.heads_kv && v.dim(2) == a.length, caller, ": v must be [",
          a.batch, ",", a.heads_kv, ",", a.length, ",Dv], got ", v.describe());
}

void set_queries(std::string_view caller, const Tensor& q, DType dtype, LinearScanArgs& a) {
  a.q = view_of(caller, "q", q);
  a.heads_q = q.dim(1);
  require(q.dtype() == dtype && q.dim(0) == a.batch && q.dim(2) == a.length && q.dim(3) == a.dim, caller,
          ": q must be ", name_of(dtype), "[", a.batch, ",Hq,", a.length, ",", a.dim, "], got ",
          q.describe());
  require(a.heads_q == 0 || (a.heads_kv > 0 && a.heads_q % a.heads_kv == 0), caller, ": Hq = ", a.heads_q,
          " is not a multiple of Hkv = ", a.heads_kv);
}

Shape state_shape(const LinearScanArgs& a) { return {a.batch, a.heads_kv, a.dim, a.dim_v}; }

/// Everything but q.
LinearScanArgs key_args(std::string_view caller, const Tensor& k, const Tensor& v,
                        const LinearScanParams& params) {
  LinearScanArgs a;
  set_keys(caller, k, v, a);
  set_decay(caller, params.log_decay, a);
  if (params.beta.defined()) a.beta = f32_view(caller, "beta", params.beta, {a.batch, a.heads_kv, a.length});
  if (params.state.defined()) a.state = f32_view(caller, "state", params.state, state_shape(a));
  require(std::isfinite(params.scale), caller, ": scale must be finite");
  require(params.chunk >= 0 && params.chunk <= kLargestChunk && params.chunk % 16 == 0, caller,
          ": chunk must be 0 or a multiple of 16 up to ", kLargestChunk, ", got ", params.chunk);
  a.scale = params.scale, a.delta = params.delta, a.chunk = params.chunk;
  return a;
}

LinearScanArgs scan_args(std::string_view caller, const Tensor& q, const Tensor& k, const Tensor& v,
                         const LinearScanParams& params) {
  LinearScanArgs a = key_args(caller, k, v, params);
  set_queries(caller, q, k.dtype(), a);
  return a;
}

}  // namespace

LinearScanResult linear_scan(const Tensor& q, const Tensor& k, const Tensor& v,
                             const LinearScanParams& params) {
  constexpr std::string_view kCaller = "linear_scan";
  cpu::LinearScanProblem problem{.args = scan_args(kCaller, q, k, v, params), .o = {}, .state_out = {}};
  const LinearScanArgs& a = problem.args;
  LinearScanResult result{Tensor::empty({a.batch, a.heads_q, a.length, a.dim_v}, v.dtype()),
                          Tensor::empty(state_shape(a))};
  problem.o = view_of(kCaller, "o", result.o);
  problem.state_out = view_of(kCaller, "state", result.state);
  cpu::run_linear_scan(problem);
  return result;
}

Tensor linear_scan_state(const Tensor& k, const Tensor& v, const LinearScanParams& params) {
  constexpr std::string_view kCaller = "linear_scan_state";
  cpu::LinearScanProblem problem{.args = key_args(kCaller, k, v, params), .o = {}, .state_out = {}};
  Tensor state = Tensor::empty(state_shape(problem.args));
  problem.state_out = view_of(kCaller, "state", state);
  cpu::run_linear_scan(problem);
  return state;
}

Tensor linear_scan_read(const Tensor& q, const Tensor& state, float scale) {
  constexpr std::string_view kCaller = "linear_scan_read";
  cpu::LinearScanProblem problem;
  LinearScanArgs& a = problem.args;
  a.state = view_of(kCaller, "state", state);
  require(q.defined() && q.rank() == 4 && is_float(q.dtype()), kCaller,
          ": q must be a float [B,Hq,T,D], got ", described(q));
  require(state.dtype() == DType::f32 && std::isfinite(scale), kCaller,
          ": state must be f32 and scale finite, got ", state.describe(), " and ", scale);
  a.batch = state.dim(0), a.heads_kv = state.dim(1), a.dim = state.dim(2), a.dim_v = state.dim(3);
  a.length = q.dim(2), a.scale = scale;
  set_queries(kCaller, q, q.dtype(), a);
  Tensor o = Tensor::empty({a.batch, a.heads_q, a.length, a.dim_v}, q.dtype());
  problem.o = view_of(kCaller, "o", o);
  cpu::run_linear_scan_read(problem);
  return o;
}

Tensor linear_scan_step(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& state,
                        const Tensor& next, const LinearScanParams& params) {
  constexpr std::string_view kCaller = "linear_scan_step";
  require(!params.state.defined(), kCaller, ": the state is an argument of its own, not one of params");
  cpu::LinearScanProblem problem{.args = scan_args(kCaller, q, k, v, params), .o = {}, .state_out = {}};
  LinearScanArgs& a = problem.args;
  require(a.length == 1, kCaller, ": expected one token, got T = ", a.length);
  a.state = f32_view(kCaller, "state", state, state_shape(a));
  problem.state_out = f32_view(kCaller, "next", next, state_shape(a));
  Tensor o = Tensor::empty({a.batch, a.heads_q, 1, a.dim_v}, v.dtype());
  problem.o = view_of(kCaller, "o", o);
  cpu::run_linear_scan_step(problem);
  return o;
}

LinearScanGradients linear_scan_backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& d_o,
                                         const LinearScanParams& params, const Tensor& d_final_state) {
  constexpr std::string_view kCaller = "linear_scan_backward";
  cpu::LinearScanBackwardProblem problem{.args = scan_args(kCaller, q, k, v, params)};
  const LinearScanArgs& a = problem.args;
  const Shape outputs{a.batch, a.heads_q, a.length, a.dim_v};
  require(d_o.defined() && d_o.shape() == outputs && d_o.dtype() == v.dtype(), kCaller, ": d_o must be ",
          name_of(v.dtype()), outputs.to_string(), ", got ", described(d_o));
  problem.d_o = view_of(kCaller, "d_o", d_o);
  if (d_final_state.defined())
    problem.d_final_state = f32_view(kCaller, "d_final_state", d_final_state, state_shape(a));

  LinearScanGradients result{.dq = Tensor::empty(q.shape(), q.dtype()),
                             .dk = Tensor::empty(k.shape(), k.dtype()),
                             .dv = Tensor::empty(v.shape(), v.dtype()),
                             .d_log_decay = {},
                             .d_beta = {},
                             .d_state = {}};
  problem.dq = view_of(kCaller, "dq", result.dq);
  problem.dk = view_of(kCaller, "dk", result.dk);
  problem.dv = view_of(kCaller, "dv", result.dv);
  memory::Buffer<double> d_log_head;
  if (a.decay != Decay::none) {
    result.d_log_decay = Tensor::zeros(params.log_decay.shape());
    if (a.decay == Decay::head) {
      d_log_head.reserve(a.batch * a.heads_kv);
      problem.d_log_head = d_log_head.data();
    } else {
      problem.d_log_decay = f32_view(kCaller, "d_log_decay", result.d_log_decay, result.d_log_decay.shape());
    }
  }
  if (a.beta) {
    result.d_beta = Tensor::empty({a.batch, a.heads_kv, a.length});
    problem.d_beta = result.d_beta.data<float>();
  }
  if (a.state) {
    result.d_state = Tensor::empty(state_shape(a));
    problem.d_state = view_of(kCaller, "d_state", result.d_state);
  }
  cpu::run_linear_scan_backward(problem);
  for (int64_t h = 0; a.decay == Decay::head && h < a.heads_kv; ++h) {
    double sum = 0;
    for (int64_t b = 0; b < a.batch; ++b) sum += d_log_head[b * a.heads_kv + h];
    result.d_log_decay.at<float>(h) = static_cast<float>(sum);
  }
  return result;
}

}  // namespace fovea::kernels
