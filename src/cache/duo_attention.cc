// SPDX-License-Identifier: Apache-2.0
// DuoAttention: retrieval and streaming heads (Xiao et al. 2024, arXiv 2410.10819). Row i stands at position
// a = i + Tk - Tq. A head of a retrieval kv head sees j <= a; one of a streaming kv head sees
//
//   j <= a  and  (j < sink  or  a - j < recent)                     chunk_size = 0
//   j <= a  and  (j < sink  or  j >= C floor(a/C) - recent)         chunk_size = C
//
// While gates are trained: o = alpha o_full + (1 - alpha) o_stream, with one alpha per kv head.
#include "fovea/cache/duo_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "fovea/core/catalogue.h"
#include "fovea/kernels/blend.h"
#include "fovea/kernels/rows.h"

namespace fovea::cache {
namespace {

using kernels::AttentionResult;

/// The largest divisor of `chunk` that is a good block of query rows.
int64_t block_of(int64_t chunk) {
  int64_t block = std::min<int64_t>(chunk, 64);
  while (chunk % block != 0) --block;
  return block;
}

/// Rows at positions first .. first + rows - 1, of which no block of `block` rows straddles two chunks.
AttentionResult attend_chunks(const Tensor& q, const Tensor& k, const Tensor& v, int64_t first, int64_t block,
                              const DuoAttentionOptions& options) {
  const int64_t keys = first + q.dim(2);
  kernels::KeyPlan plan{.block_q = block, .queries = q.dim(2), .keys = keys};
  plan.range_offsets = {0};
  plan.column_offsets.assign(static_cast<size_t>(plan.lists()) + 1, 0);
  for (int64_t n = 0; n < plan.query_blocks(); ++n) {
    const int64_t position = first + n * block, last = std::min(position + block, keys);
    const int64_t start = position / options.chunk_size * options.chunk_size;
    const int64_t window = std::max<int64_t>(0, start - options.recent);
    if (options.sink < window) {
      if (options.sink > 0) plan.ranges.push_back({0, static_cast<int32_t>(options.sink)});
      plan.ranges.push_back({static_cast<int32_t>(window), static_cast<int32_t>(last)});
    } else {
      plan.ranges.push_back({0, static_cast<int32_t>(last)});
    }
    plan.range_offsets.push_back(static_cast<int64_t>(plan.ranges.size()));
  }
  return kernels::plan_forward(q, k.slice(2, 0, keys), v.slice(2, 0, keys), plan,
                               {.visible = kernels::Visibility::causal()});
}

/// Streaming heads in chunks. The rows before the first chunk boundary have their own blocks.
AttentionResult stream_in_chunks(const Tensor& q, const Tensor& k, const Tensor& v,
                                 const DuoAttentionOptions& options) {
  const int64_t rows = q.dim(2), offset = k.dim(2) - rows, chunk = options.chunk_size;
  const AttentionResult result{
      Tensor::zeros({q.dim(0), q.dim(1), rows, v.dim(3)}, v.dtype()),
      Tensor::full({q.dim(0), q.dim(1), rows}, -std::numeric_limits<float>::infinity())};
  auto attend = [&](int64_t begin, int64_t end, int64_t block) {
    if (begin >= end) return;
    const auto part = attend_chunks(q.slice(2, begin, end), k, v, offset + begin, block, options);
    result.o.slice(2, begin, end).copy_from(part.o);
    result.lse.slice(2, begin, end).copy_from(part.lse);
  };
  const int64_t begin = std::clamp<int64_t>(-offset, 0, rows);  // rows before it see nothing
  const int64_t into_chunk = (offset + begin) % chunk;
  const int64_t boundary = into_chunk == 0 ? begin : begin + std::min(rows - begin, chunk - into_chunk);
  attend(begin, boundary, std::min<int64_t>(64, std::max<int64_t>(boundary - begin, 1)));
  attend(boundary, rows, block_of(chunk));
  return result;
}

AttentionResult attend_full(const Tensor& q, const Tensor& k, const Tensor& v) {
  return kernels::flash_forward(q, k, v, {.visible = kernels::Visibility::causal()});
}

AttentionResult attend_streaming(const Tensor& q, const Tensor& k, const Tensor& v,
                                 const StreamingOptions& options) {
  return kernels::flash_forward(q, k, v, {.visible = options.visibility()});
}

}  // namespace

AttentionResult duo_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& retrieval,
                              const DuoAttentionOptions& options) {
  const int64_t heads = k.dim(1), group = heads > 0 ? q.dim(1) / heads : 0;
  require(retrieval.rank() == 1 && retrieval.dim(0) == heads, "duo-attention: retrieval is ",
          retrieval.describe(), ", expected u8[", heads, "]");
  const AttentionResult result{Tensor::empty({q.dim(0), q.dim(1), q.dim(2), v.dim(3)}, v.dtype()),
                               Tensor::empty({q.dim(0), q.dim(1), q.dim(2)})};
  for (int64_t first = 0, last; first < heads; first = last) {
    const bool full = retrieval.at<uint8_t>(first) != 0;
    for (last = first + 1; last < heads && (retrieval.at<uint8_t>(last) != 0) == full;) ++last;
    const Tensor qs = q.slice(1, first * group, last * group), ks = k.slice(1, first, last),
                 vs = v.slice(1, first, last);
    const auto part = full                      ? attend_full(qs, ks, vs)
                      : options.chunk_size == 0 ? attend_streaming(qs, ks, vs, options)
                                                : stream_in_chunks(qs, ks, vs, options);
    if (last - first == heads) return part;
    result.o.slice(1, first * group, last * group).copy_from(part.o);
    result.lse.slice(1, first * group, last * group).copy_from(part.lse);
  }
  return result;
}

Tensor duo_mix(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& alpha,
               const StreamingOptions& options) {
  return kernels::blend_heads(attend_full(q, k, v).o, attend_streaming(q, k, v, options).o, alpha);
}

Tensor duo_mix_backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& d_o,
                        const StreamingOptions& options) {
  const Tensor apart = kernels::difference(attend_full(q, k, v).o, attend_streaming(q, k, v, options).o);
  const Tensor products = kernels::row_dots(d_o, apart);  // [B,Hq,Tq]
  const int64_t heads = k.dim(1), group = heads > 0 ? q.dim(1) / heads : 0, rows = q.dim(2);
  const Tensor d_alpha = Tensor::empty({heads});
  for (int64_t g = 0; g < heads; ++g) {
    double sum = 0;
    for (int64_t b = 0; b < q.dim(0); ++b) {
      const float* of_group = products.data<float>() + (b * q.dim(1) + g * group) * rows;
      for (int64_t i = 0; i < group * rows; ++i) sum += static_cast<double>(of_group[i]);
    }
    d_alpha.at<float>(g) = static_cast<float>(sum);
  }
  return d_alpha;
}

double duo_loss(const Tensor& h_full, const Tensor& h_mix, const Tensor& labels, const Tensor& alpha,
                double reg_weight) {
  const Tensor apart = kernels::difference(h_full, h_mix), distances = kernels::row_dots(apart, apart);
  const Tensor labelled = labels.contiguous(), gates = alpha.contiguous();
  double distance = 0, regularisation = 0;
  int64_t count = 0;
  for (int64_t t = 0; t < labelled.size(); ++t) {
    if (labelled.data<uint8_t>()[t] == 0) continue;
    distance += static_cast<double>(distances.data<float>()[t]);
    ++count;
  }
  for (int64_t g = 0; g < gates.size(); ++g)
    regularisation += std::fabs(static_cast<double>(gates.data<float>()[g]));
  const auto width = static_cast<double>(std::max<int64_t>(h_full.dim(2), 1));
  return (count > 0 ? distance / width / static_cast<double>(count) : 0.0) +
         (gates.size() > 0 ? reg_weight * regularisation / static_cast<double>(gates.size()) : 0.0);
}

Tensor duo_heads(const Tensor& alpha, const DuoHeadsOptions& options) {
  const Tensor gates = alpha.contiguous(), retrieval = Tensor::zeros(alpha.shape(), DType::u8);
  auto* chosen = retrieval.data<uint8_t>();
  if (options.sparsity < 0) {
    for (int64_t i = 0; i < gates.size(); ++i)
      chosen[i] = static_cast<double>(gates.data<float>()[i]) >= options.threshold ? 1 : 0;
    return retrieval;
  }
  const Tensor order = kernels::argsort_rows(gates.reshape({gates.size()}));
  const auto streaming = static_cast<int64_t>(
      std::floor(options.sparsity * static_cast<double>(alpha.dim(0)) * static_cast<double>(alpha.dim(1))));
  for (int64_t i = streaming; i < gates.size(); ++i) chosen[order.at<int32_t>(i)] = 1;
  return retrieval;
}

namespace {

struct LossOptions {
  double reg_weight = 0.05;
  static constexpr auto fields() {
    return options::list(
        options::field(&LossOptions::reg_weight, "reg_weight", "weight of the mean |alpha|"));
  }
};

constexpr const char* kQ = "q [B,Hq,Tq,D]";
constexpr const char* kK = "k [B,Hkv,Tk,D]";
constexpr const char* kV = "v [B,Hkv,Tk,Dv]";

}  // namespace

void register_duo_attention(Catalogue& catalogue) {
  catalogue.add<DuoAttentionOptions>("duo-attention", Room::cache, 111)
      .summary("causal attention in which some heads see only sinks and a recent window")
      .inputs({"q [B,Hq,Tq,D] float", "k [B,Hkv,Tk,D] float", "v [B,Hkv,Tk,Dv] float", "retrieval [Hkv] u8"})
      .outputs({"o [B,Hq,Tq,Dv] float", "lse [B,Hq,Tq]"})
      .forms({Form::decode, Form::causal, Form::grouped})
      .requires_multiple("Hq", "Hkv")
      .runs([](const Tensors& in, const DuoAttentionOptions& options) -> Tensors {
        const auto result = duo_attention(in["q"], in["k"], in["v"], in["retrieval"], options);
        return {{"o", result.o}, {"lse", result.lse}};
      });
  catalogue.add<StreamingOptions>("duo-mix", Room::cache, 111)
      .summary("full and streaming attention blended by a gate for each kv head")
      .inputs({kQ, kK, kV, "alpha [Hkv]"})
      .outputs({"o [B,Hq,Tq,Dv]"})
      .forms({Form::causal, Form::grouped})
      .requires_multiple("Hq", "Hkv")
      .runs([](const Tensors& in, const StreamingOptions& options) -> Tensors {
        return {{"o", duo_mix(in["q"], in["k"], in["v"], in["alpha"], options)}};
      });
  catalogue.add<StreamingOptions>("duo-mix-backward", Room::cache, 111)
      .summary("gradient of the gates of duo-mix")
      .inputs({kQ, kK, kV, "do [B,Hq,Tq,Dv]"})
      .outputs({"dalpha [Hkv]"})
      .forms({Form::backward, Form::causal, Form::grouped})
      .requires_multiple("Hq", "Hkv")
      .runs([](const Tensors& in, const StreamingOptions& options) -> Tensors {
        return {{"dalpha", duo_mix_backward(in["q"], in["k"], in["v"], in["do"], options)}};
      });
  catalogue.add<LossOptions>("duo-loss", Room::cache, 111)
      .summary("distillation loss of the gated model plus the size of its gates")
      .inputs({"h_full [B,T,E]", "h_mix [B,T,E]", "labels [B,T] u8", "alpha [L,Hkv]"})
      .outputs({"loss [1]"})
      .runs([](const Tensors& in, const LossOptions& options) -> Tensors {
        const double loss =
            duo_loss(in["h_full"], in["h_mix"], in["labels"], in["alpha"], options.reg_weight);
        return {{"loss", Tensor::full({1}, static_cast<float>(loss))}};
      });
  catalogue.add<DuoHeadsOptions>("duo-heads", Room::cache, 111)
      .summary("retrieval heads from trained gates")
      .inputs({"alpha [L,Hkv]"})
      .outputs({"retrieval [L,Hkv] u8"})
      .runs([](const Tensors& in, const DuoHeadsOptions& options) -> Tensors {
        return {{"retrieval", duo_heads(in["alpha"], options)}};
      });
}

}  // namespace fovea::cache
