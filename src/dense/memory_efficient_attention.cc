// SPDX-License-Identifier: Apache-2.0
#include "fovea/dense/memory_efficient_attention.h"

#include <vector>

#include "fovea/core/catalogue.h"

// Memory-efficient attention. A set of keys is summed up by a triple (m, s, a); two sets join by
//
//   M = max(m, m')    s = e^(m-M) s + e^(m'-M) s'    a = e^(m-M) a + e^(m'-M) a'    o = a / s, lse = M + log
//   s
//
// so that chunks of keys pass one after another and only the triple stays. That running form is the flash
// kernel; the chunk sizes become its tile sizes, cut to what its caches hold.

namespace fovea::dense {
namespace {

using kernels::AttentionParams;
using kernels::AttentionResult;

AttentionParams params_of(const MemoryEfficientAttentionOptions& options, const Tensor& bias,
                          const Tensor& mask) {
  AttentionParams params;
  params.scale = static_cast<float>(options.scale);
  if (options.causal) params.visible = kernels::Visibility::causal();
  params.bias = bias;
  params.mask = mask;
  params.query_tile = options.query_chunk;
  params.key_tile = options.key_chunk;
  return params;
}

}  // namespace

AttentionResult memory_efficient_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                           const MemoryEfficientAttentionOptions& options, const Tensor& bias,
                                           const Tensor& mask) {
  return kernels::flash_forward(q, k, v, params_of(options, bias, mask));
}

kernels::AttentionGradients memory_efficient_attention_backward(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& d_o,
    const MemoryEfficientAttentionOptions& options, const Tensor& bias, const Tensor& mask) {
  const AttentionParams params = params_of(options, bias, mask);
  return kernels::flash_backward(q, k, v, kernels::flash_forward(q, k, v, params), d_o, params);
}

kernels::AttentionSummary attention_chunk_summary(const Tensor& q, const Tensor& k, const Tensor& v,
                                                  const ChunkSummaryOptions& options) {
  return kernels::flash_summary(q, k, v, {.scale = static_cast<float>(options.scale)});
}

AttentionResult attention_merge(const Tensor& o, const Tensor& lse) {
  require(o.rank() == 5 && lse.rank() == 4 && o.dim(0) == lse.dim(0),
          "attention_merge: o must be [N,B,Hq,Tq,Dv] and lse [N,B,Hq,Tq], got ", o.describe(), " and ",
          lse.describe());
  std::vector<AttentionResult> parts;
  for (int64_t n = 0; n < o.dim(0); ++n) parts.push_back({o.select(0, n), lse.select(0, n)});
  return kernels::merge(parts);
}

void register_memory_efficient_attention(Catalogue& catalogue) {
  constexpr const char* kQ = "q [B,Hq,Tq,D] float";
  constexpr const char* kK = "k [B,Hkv,Tk,D] float";
  constexpr const char* kV = "v [B,Hkv,Tk,Dv] float";
  constexpr const char* kBias = "bias? [1|B,1|Hq,Tq,Tk]";
  constexpr const char* kMask = "mask? [1|B,1|Hq,Tq,Tk] u8";
  catalogue.add<MemoryEfficientAttentionOptions>("memory-efficient-attention", Room::dense, 41)
      .summary("exact attention by chunks, with an additive bias and a mask, in constant scratch")
      .inputs({kQ, kK, kV, kBias, kMask})
      .outputs({"o [B,Hq,Tq,Dv] float", "lse [B,Hq,Tq]"})
      .forms({Form::causal, Form::grouped})
      .requires_multiple("Hq", "Hkv")
      .runs([](const Tensors& in, const MemoryEfficientAttentionOptions& options) -> Tensors {
        const auto result =
            memory_efficient_attention(in["q"], in["k"], in["v"], options, in["bias"], in["mask"]);
        return {{"o", result.o}, {"lse", result.lse}};
      });
  catalogue.add<ChunkSummaryOptions>("attention-chunk-summary", Room::dense, 41)
      .summary("largest score, sum of weights and weighted values of one chunk of keys, unnormalised")
      .inputs({kQ, kK, kV})
      .outputs({"m [B,Hq,Tq]", "s [B,Hq,Tq]", "a [B,Hq,Tq,Dv]"})
      .forms({Form::grouped})
      .requires_multiple("Hq", "Hkv")
      .runs([](const Tensors& in, const ChunkSummaryOptions& options) -> Tensors {
        const auto summary = attention_chunk_summary(in["q"], in["k"], in["v"], options);
        return {{"m", summary.m}, {"s", summary.s}, {"a", summary.a}};
      });
  catalogue.add<options::None>("attention-merge", Room::dense, 41)
      .summary("attention over the union of disjoint sets of keys from the results over each")
      .inputs({"o [N,B,Hq,Tq,Dv] float", "lse [N,B,Hq,Tq]"})
      .outputs({"o [B,Hq,Tq,Dv] float", "lse [B,Hq,Tq]"})
      .requires_that([](const Symbols& symbols, const options::None&) -> std::string {
        return symbols.at("N") >= 1 ? "" : "N = 0: there is nothing to merge";
      })
      .runs([](const Tensors& in, const options::None&) -> Tensors {
        const auto merged = attention_merge(in["o"], in["lse"]);
        return {{"o", merged.o}, {"lse", merged.lse}};
      });
  catalogue.add<MemoryEfficientAttentionOptions>("memory-efficient-attention-backward", Room::dense, 41)
      .summary("gradients of memory-efficient-attention, every chunk recomputed")
      .inputs({kQ, kK, kV, "do [B,Hq,Tq,Dv] float", kBias, kMask})
      .outputs({"dq [B,Hq,Tq,D] float", "dk [B,Hkv,Tk,D] float", "dv [B,Hkv,Tk,Dv] float",
                "dbias? [1|B,1|Hq,Tq,Tk]"})
      .forms({Form::backward, Form::causal, Form::grouped})
      .requires_multiple("Hq", "Hkv")
      .runs([](const Tensors& in, const MemoryEfficientAttentionOptions& options) -> Tensors {
        const auto gradients = memory_efficient_attention_backward(in["q"], in["k"], in["v"], in["do"],
                                                                   options, in["bias"], in["mask"]);
        Tensors out{{"dq", gradients.dq}, {"dk", gradients.dk}, {"dv", gradients.dv}};
        if (in.contains("bias")) out.set("dbias", gradients.dbias);
        return out;
      });
}

}  // namespace fovea::dense
