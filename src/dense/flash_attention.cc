// SPDX-License-Identifier: Apache-2.0
#include "fovea/dense/flash_attention.h"

#include "fovea/core/catalogue.h"

// FlashAttention. With s_ij = softcap tanh(scale q_i.k_j / softcap), or scale q_i.k_j, over the keys j a row
// sees:
//
//   lse_i = log(sum_j exp(s_ij) + exp(sink))        P_ij = exp(s_ij - lse_i)        o_i = sum_j P_ij v_j
//
// computed in tiles of queries and keys with a running maximum and sum; the backward pass recomputes P from
// lse. All of it is the flash kernel; here are its options.

namespace fovea::dense {
namespace {

using kernels::AttentionParams;
using kernels::AttentionResult;

AttentionParams params_of(const FlashAttentionOptions& options, const Tensor& sink, const Tensor& k_len) {
  AttentionParams params;
  params.scale = static_cast<float>(options.scale);
  params.softcap = static_cast<float>(options.softcap);
  params.visible.window_left = options.window_left;
  params.visible.window_right = options.causal ? 0 : options.window_right;
  params.sink = sink;
  params.k_len = k_len;
  return params;
}

Tensors outputs_of(const AttentionResult& result) { return {{"o", result.o}, {"lse", result.lse}}; }

}  // namespace

AttentionResult flash_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                const FlashAttentionOptions& options, const Tensor& sink,
                                const Tensor& k_len) {
  return kernels::flash_forward(q, k, v, params_of(options, sink, k_len));
}

kernels::AttentionGradients flash_attention_backward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                     const Tensor& d_o, const FlashAttentionOptions& options,
                                                     const Tensor& sink, const Tensor& k_len) {
  const AttentionParams params = params_of(options, sink, k_len);
  return kernels::flash_backward(q, k, v, kernels::flash_forward(q, k, v, params), d_o, params);
}

AttentionResult flash_attention_varlen(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q,
                                       const Tensor& cu_k, const FlashAttentionOptions& options,
                                       const Tensor& sink) {
  return kernels::flash_forward_varlen(q, k, v, cu_q, cu_k, params_of(options, sink, {}));
}

void register_flash_attention(Catalogue& catalogue) {
  constexpr const char* kQ = "q [B,Hq,Tq,D] float";
  constexpr const char* kK = "k [B,Hkv,Tk,D] float";
  constexpr const char* kV = "v [B,Hkv,Tk,Dv] float";
  catalogue.add<FlashAttentionOptions>("flash-attention", Room::dense, 12)
      .summary("exact attention in tiles: causal, windows, grouped heads, softcap, sinks, ragged lengths")
      .inputs({kQ, kK, kV, "sink? [Hq]", "k_len? [B] i32"})
      .outputs({"o [B,Hq,Tq,Dv] float", "lse [B,Hq,Tq]"})
      .forms({Form::causal, Form::grouped})
      .requires_multiple("Hq", "Hkv")
      .runs([](const Tensors& in, const FlashAttentionOptions& options) {
        return outputs_of(flash_attention(in["q"], in["k"], in["v"], options, in["sink"], in["k_len"]));
      });
  catalogue.add<FlashAttentionOptions>("flash-attention-backward", Room::dense, 12)
      .summary("gradients of flash-attention, probabilities recomputed")
      .inputs({kQ, kK, kV, "do [B,Hq,Tq,Dv] float", "sink? [Hq]", "k_len? [B] i32"})
      .outputs({"dq [B,Hq,Tq,D] float", "dk [B,Hkv,Tk,D] float", "dv [B,Hkv,Tk,Dv] float", "dsink? [Hq]"})
      .forms({Form::backward, Form::causal, Form::grouped})
      .requires_multiple("Hq", "Hkv")
      .runs([](const Tensors& in, const FlashAttentionOptions& options) {
        const auto gradients =
            flash_attention_backward(in["q"], in["k"], in["v"], in["do"], options, in["sink"], in["k_len"]);
        Tensors out{{"dq", gradients.dq}, {"dk", gradients.dk}, {"dv", gradients.dv}};
        if (in.contains("sink")) out.set("dsink", gradients.dsink);
        return out;
      });
  catalogue.add<FlashAttentionOptions>("flash-attention-varlen", Room::dense, 12)
      .summary("flash-attention over a packed batch of sequences of different lengths")
      .inputs({"q [Nq,Hq,D] float", "k [Nk,Hkv,D] float", "v [Nk,Hkv,Dv] float", "cu_q [n+1] i32",
               "cu_k [n+1] i32", "sink? [Hq]"})
      .outputs({"o [Nq,Hq,Dv] float", "lse [Hq,Nq]"})
      .forms({Form::causal, Form::grouped})
      .requires_multiple("Hq", "Hkv")
      .runs([](const Tensors& in, const FlashAttentionOptions& options) {
        return outputs_of(
            flash_attention_varlen(in["q"], in["k"], in["v"], in["cu_q"], in["cu_k"], options, in["sink"]));
      });
}

}  // namespace fovea::dense
