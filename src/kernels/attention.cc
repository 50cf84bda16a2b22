// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/attention.h"

#include <vector>

#include "fovea/kernels/decode_args.h"
#include "kernels/attention_args.h"
#include "kernels/cpu/forward.h"

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
  require(params.scores != ScoreArithmetic::int8 || a.dim <= 1024, caller,
          ": scores int8 need D <= 1024, got ", a.dim);
  a.scores = params.scores;

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

namespace {

// Query rows of a kv head up to which reading the keys, not arithmetic, is the work, and keys from which
// splitting them pays.
constexpr int64_t kFewRows = 16;
constexpr int64_t kManyKeys = 256;

// Can `decode` do it, and does it do it faster? It splits one sequence over all threads and reads keys in
// place, but knows no low-rank bias and no 8-bit scores. The choice depends on shapes alone.
bool few_rows_over_many_keys(const AttentionArgs& a) {
  return a.heads_kv > 0 && a.group() * a.queries <= kFewRows && a.keys >= kManyKeys && !a.bias_q &&
         !a.bias_k && a.scores != ScoreArithmetic::int8 && a.query_tile == 0 && a.key_tile == 0;
}

void forward_few_rows(const AttentionArgs& a, const AttentionResult& result) {
  std::vector<int32_t> lengths(static_cast<size_t>(a.batch));
  for (int64_t b = 0; b < a.batch; ++b) lengths[static_cast<size_t>(b)] = static_cast<int32_t>(a.length(b));
  DecodeArgs d;
  d.type = a.q.dtype;
  d.q = a.q.data, d.k = a.k.data, d.v = a.v.data;
  d.o = result.o.raw(), d.lse = result.lse.data<float>();
  d.batch = a.batch, d.heads_q = a.heads_q, d.heads_kv = a.heads_kv, d.rows = a.queries;
  d.dim = a.dim, d.dim_v = a.dim_v;
  d.q_stride = {a.q.batch, a.q.head, a.q.row};
  d.k_stride = {0, a.k.batch, a.k.head, a.k.row};
  d.v_stride = {0, a.v.batch, a.v.head, a.v.row};
  d.page_size = a.keys;
  d.lengths = lengths.data();
  d.scale = a.scale, d.softcap = a.softcap;
  d.window_left = a.visible.window_left, d.window_right = a.visible.window_right, d.prefix = a.visible.prefix;
  d.sink = a.sink, d.slopes = a.slopes;
  d.bias = static_cast<const float*>(a.bias.data), d.bias_stride = {a.bias.batch, a.bias.head, a.bias.row};
  d.mask = static_cast<const uint8_t*>(a.mask.data), d.mask_stride = {a.mask.batch, a.mask.head, a.mask.row};
  cpu::decode(d);
}

/// Results of a forward call whose tensors are all [B,H,T,D], with the problem that fills them.
AttentionResult forward(std::string_view caller, const Tensor& q, const Tensor& k, const Tensor& v,
                        const KeyPlan* plan, const AttentionParams& params) {
  cpu::ForwardProblem problem{.args = attention_args(caller, q, k, v, params), .plan = plan};
  const AttentionArgs& a = problem.args;
  if (plan) check(*plan, a.batch, a.heads_q, a.heads_kv, a.queries, a.keys);
  AttentionResult result{Tensor::empty({a.batch, a.heads_q, a.queries, a.dim_v}, v.dtype()),
                         Tensor::empty({a.batch, a.heads_q, a.queries})};
  if (!plan && few_rows_over_many_keys(a)) {
    forward_few_rows(a, result);
    return result;
  }
  problem.o = view_of(caller, "o", result.o);
  problem.lse = result.lse.data<float>();
  problem.lse_batch = a.heads_q * a.queries, problem.lse_head = a.queries;
  cpu::run_forward({&problem, 1});
  return result;
}

/// cu [n+1]: ascending from 0 to `rows`.
const int32_t* check_offsets(std::string_view name, const Tensor& cu, int64_t rows) {
  constexpr std::string_view kCaller = "flash_forward_varlen";
  require(cu.defined() && cu.dtype() == DType::i32 && cu.rank() == 1 && cu.dim(0) >= 1 && cu.is_contiguous(),
          kCaller, ": ", name, " must be a contiguous i32[n+1]",
          cu.defined() ? ", got " + cu.describe() : std::string());
  const int32_t* offsets = cu.data<int32_t>();
  const int64_t last = cu.dim(0) - 1;
  require(offsets[0] == 0, kCaller, ": ", name, " must begin with 0, got ", offsets[0]);
  for (int64_t s = 0; s < last; ++s)
    require(offsets[s] <= offsets[s + 1], kCaller, ": ", name, " must ascend, but ", name, "[", s + 1,
            "] = ", offsets[s + 1], " follows ", offsets[s]);
  require(offsets[last] == rows, kCaller, ": ", name, " must end with the number of rows ", rows, ", got ",
          offsets[last]);
  return offsets;
}

}  // namespace

AttentionResult flash_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                              const AttentionParams& params) {
  return forward("flash_forward", q, k, v, nullptr, params);
}

AttentionResult plan_forward(const Tensor& q, const Tensor& k, const Tensor& v, const KeyPlan& plan,
                             const AttentionParams& params) {
  return forward("plan_forward", q, k, v, &plan, params);
}

AttentionSummary flash_summary(const Tensor& q, const Tensor& k, const Tensor& v,
                               const AttentionParams& params) {
  constexpr std::string_view kCaller = "flash_summary";
  require(!params.sink.defined(), kCaller, ": a sink belongs to a whole softmax, not to a summary");
  cpu::ForwardProblem problem{.args = attention_args(kCaller, q, k, v, params)};
  const AttentionArgs& a = problem.args;
  const Shape rows{a.batch, a.heads_q, a.queries};
  AttentionSummary result{Tensor::empty(rows), Tensor::empty(rows),
                          Tensor::empty({a.batch, a.heads_q, a.queries, a.dim_v})};
  problem.o = view_of(kCaller, "a", result.a);
  problem.lse = result.m.data<float>();
  problem.sum = result.s.data<float>();
  problem.lse_batch = a.heads_q * a.queries, problem.lse_head = a.queries;
  cpu::run_forward({&problem, 1});
  return result;
}

AttentionResult flash_forward_varlen(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q,
                                     const Tensor& cu_k, const AttentionParams& params) {
  constexpr std::string_view kCaller = "flash_forward_varlen";
  for (const auto& [name, tensor] : {std::pair("q", &q), std::pair("k", &k), std::pair("v", &v)})
    require(tensor->rank() == 3, kCaller, ": ", name, " must be [N,H,D], got ", tensor->describe());
  for (const auto& [name, tensor] :
       {std::pair("k_len", &params.k_len), std::pair("bias", &params.bias), std::pair("mask", &params.mask),
        std::pair("bias_q", &params.bias_q), std::pair("bias_k", &params.bias_k)})
    require(!tensor->defined(), kCaller, ": ", name, " is not available for ragged batches");
  const auto as_batch = [](const Tensor& x) { return x.transpose(0, 1).unsqueeze(0); };
  const Tensor q4 = as_batch(q), k4 = as_batch(k), v4 = as_batch(v);
  const AttentionArgs whole = attention_args(kCaller, q4, k4, v4, params);
  const int32_t* q_offsets = check_offsets("cu_q", cu_q, whole.queries);
  const int32_t* k_offsets = check_offsets("cu_k", cu_k, whole.keys);
  require(cu_q.dim(0) == cu_k.dim(0), kCaller, ": cu_q has ", cu_q.dim(0), " offsets, cu_k ", cu_k.dim(0));

  AttentionResult result{Tensor::empty({whole.queries, whole.heads_q, whole.dim_v}, v.dtype()),
                         Tensor::empty({whole.heads_q, whole.queries})};
  const View o = view_of(kCaller, "o", as_batch(result.o));
  std::vector<cpu::ForwardProblem> problems;
  for (int64_t s = 0; s + 1 < cu_q.dim(0); ++s) {
    const int64_t first_q = q_offsets[s], first_k = k_offsets[s];
    cpu::ForwardProblem problem{.args = whole, .o = o};
    AttentionArgs& a = problem.args;
    a.queries = q_offsets[s + 1] - first_q;
    a.keys = k_offsets[s + 1] - first_k;
    if (a.queries == 0) continue;
    a.q.data = whole.q.at(0, 0, first_q);
    a.k.data = whole.k.at(0, 0, first_k);
    a.v.data = whole.v.at(0, 0, first_k);
    problem.o.data = o.at(0, 0, first_q);
    problem.lse = result.lse.data<float>() + first_q;
    problem.lse_head = whole.queries;
    problems.push_back(problem);
  }
  cpu::run_forward(problems);
  return result;
}

}  // namespace fovea::kernels
