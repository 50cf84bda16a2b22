// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/attention.h"

#include "fovea/kernels/attention_args.h"

namespace fovea::kernels {
namespace {

/// An optional tensor that broadcasts over batch and head: [1|B,1|Hq,rows,columns].
View broadcast_view(std::string_view caller, std::string_view name, const Tensor& tensor, DType dtype,
                    int64_t batch, int64_t heads, int64_t rows, int64_t columns) {
  if (!tensor.defined()) return {};
  require(tensor.dtype() == dtype, caller, ": ", name, " must be ", name_of(dtype), ", got ",
          tensor.describe());
  require(tensor.rank() == 4 && (tensor.dim(0) == 1 || tensor.dim(0) == batch) &&
              (tensor.dim(1) == 1 || tensor.dim(1) == heads) && tensor.dim(2) == rows &&
              tensor.dim(3) == columns,
          caller, ": ", name, " must be [1|", batch, ",1|", heads, ",", rows, ",", columns, "], got ",
          tensor.describe());
  return view_of(caller, name, tensor);
}

/// An optional contiguous vector.
template <typename T>
const T* vector_of(std::string_view caller, std::string_view name, const Tensor& tensor, int64_t count) {
  if (!tensor.defined()) return nullptr;
  require(tensor.dtype() == DTypeOf<T>::value && tensor.rank() == 1 && tensor.dim(0) == count, caller, ": ",
          name, " must be ", name_of(DTypeOf<T>::value), "[", count, "], got ", tensor.describe());
  require(tensor.is_contiguous(), caller, ": ", name, " must be contiguous");
  return tensor.data<T>();
}

}  // namespace

View view_of(std::string_view caller, std::string_view name, const Tensor& tensor) {
  require(tensor.defined() && tensor.rank() == 4, caller, ": ", name, " must have 4 axes, got ",
          tensor.describe());
  require(tensor.dim(3) <= 1 || tensor.stride(3) == 1, caller, ": the last axis of ", name,
          " must be contiguous, its stride is ", tensor.stride(3));
  auto stride = [&](int axis) { return tensor.dim(axis) == 1 ? 0 : tensor.stride(axis); };
  return {tensor.raw(), tensor.dtype(), stride(0), stride(1), stride(2)};
}

AttentionArgs attention_args(std::string_view caller, const Tensor& q, const Tensor& k, const Tensor& v,
                             const AttentionParams& params) {
  AttentionArgs a;
  a.q = view_of(caller, "q", q);
  a.k = view_of(caller, "k", k);
  a.v = view_of(caller, "v", v);
  a.batch = q.dim(0), a.heads_q = q.dim(1), a.queries = q.dim(2), a.dim = q.dim(3);
  a.heads_kv = k.dim(1), a.keys = k.dim(2), a.dim_v = v.dim(3);
  require(is_float(q.dtype()) && k.dtype() == q.dtype() && v.dtype() == q.dtype(), caller,
          ": q, k and v must share one of f32, f16, bf16, got ", q.describe(), ", ", k.describe(), ", ",
          v.describe());
  require(k.dim(0) == a.batch && k.dim(3) == a.dim, caller, ": k must be [", a.batch, ",Hkv,Tk,", a.dim,
          "], got ", k.describe());
  require(v.dim(0) == a.batch && v.dim(1) == a.heads_kv && v.dim(2) == a.keys, caller, ": v must be [",
          a.batch, ",", a.heads_kv, ",", a.keys, ",Dv], got ", v.describe());
  require(a.heads_q == 0 || (a.heads_kv > 0 && a.heads_q % a.heads_kv == 0), caller, ": Hq = ", a.heads_q,
          " is not a multiple of Hkv = ", a.heads_kv);
  require(a.keys < std::numeric_limits<int32_t>::max(), caller, ": Tk = ", a.keys, " is too long");

  require(std::isfinite(params.scale) && params.scale >= 0, caller, ": scale must be finite and >= 0");
  require(std::isfinite(params.softcap) && params.softcap >= 0, caller, ": softcap must be finite and >= 0");
  require(params.visible.window_left >= -1 && params.visible.window_right >= -1 && params.visible.prefix >= 0,
          caller, ": windows must be >= -1 and prefix >= 0");
  require(params.query_tile >= 0 && params.key_tile >= 0, caller, ": tile sizes must be >= 0");
  a.scale =
      params.scale > 0 ? params.scale : 1.0f / std::sqrt(static_cast<float>(std::max<int64_t>(a.dim, 1)));
  a.softcap = params.softcap;
  a.visible = params.visible;
  a.query_tile = params.query_tile, a.key_tile = params.key_tile;

  a.k_len = vector_of<int32_t>(caller, "k_len", params.k_len, a.batch);
  if (a.k_len)
    for (int64_t b = 0; b < a.batch; ++b)
      require(a.k_len[b] >= 0 && a.k_len[b] <= a.keys, caller, ": k_len[", b, "] = ", a.k_len[b],
              " is outside 0..Tk = ", a.keys);
  a.sink = vector_of<float>(caller, "sink", params.sink, a.heads_q);
  a.slopes = vector_of<float>(caller, "slopes", params.slopes, a.heads_q);
  a.bias = broadcast_view(caller, "bias", params.bias, DType::f32, a.batch, a.heads_q, a.queries, a.keys);
  a.mask = broadcast_view(caller, "mask", params.mask, DType::u8, a.batch, a.heads_q, a.queries, a.keys);
  require(params.bias_q.defined() == params.bias_k.defined(), caller,
          ": bias_q and bias_k must be given together");
  if (params.bias_q.defined()) {
    a.rank = params.bias_q.dim(-1);
    a.bias_q =
        broadcast_view(caller, "bias_q", params.bias_q, DType::f32, a.batch, a.heads_q, a.queries, a.rank);
    a.bias_k =
        broadcast_view(caller, "bias_k", params.bias_k, DType::f32, a.batch, a.heads_q, a.keys, a.rank);
  }
  return a;
}

}  // namespace fovea::kernels
