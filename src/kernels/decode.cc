// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>

#include "fovea/kernels/attention.h"
#include "fovea/kernels/decode_args.h"

namespace fovea::kernels {
namespace {

void check_floats(const char* name, const Tensor& t, DType type) {
  require(t.defined() && t.rank() == 4, "decode: ", name, " must have 4 axes");
  require(is_float(t.dtype()) && t.dtype() == type, "decode: ", name, " is ", name_of(t.dtype()), ", q is ",
          name_of(type));
  require(t.dim(3) <= 1 || t.stride(3) == 1, "decode: the last axis of ", name, " is not contiguous");
}

void check_shape(const char* name, const Tensor& t, const Shape& want, DType type) {
  require(t.shape() == want && t.dtype() == type, "decode: ", name, " is ", t, ", expected ", name_of(type),
          want);
}

// Additive or boolean masks: [1|B,1|Hq,Tq,Tk] with Tk >= every length.
DecodeArgs::Rows check_scores(const char* name, const Tensor& t, DType type, const Tensor& q,
                              int64_t longest) {
  require(t.rank() == 4 && t.dtype() == type, "decode: ", name, " is ", t, ", expected ", name_of(type),
          "[1|B,1|Hq,Tq,Tk]");
  require((t.dim(0) == 1 || t.dim(0) == q.dim(0)) && (t.dim(1) == 1 || t.dim(1) == q.dim(1)) &&
              t.dim(2) == q.dim(2) && t.dim(3) >= longest,
          "decode: ", name, " is ", t, ", which does not cover q ", q, " and ", longest, " keys");
  require(t.dim(3) <= 1 || t.stride(3) == 1, "decode: the last axis of ", name, " is not contiguous");
  return {t.dim(0) == 1 ? 0 : t.stride(0), t.dim(1) == 1 ? 0 : t.stride(1), t.stride(2)};
}

void check_rows(const CodedKv& kv) {
  const auto heads = static_cast<int64_t>(kv.rows_k.size());
  require(
      kv.rows_k.size() == kv.rows_v.size() && (heads == 0 || (heads == kv.heads && kv.heads_together == 1)),
      "decode: ", heads, " keys and ", kv.rows_v.size(), " values in rows of codes do not fit ", kv.heads,
      " heads read ", kv.heads_together, " at a time");
  const auto fits = [](const AffineRows& rows, int64_t channels) {
    return rows.channels == channels && rows.group >= 1 && channels % rows.group == 0 &&
           (rows.scale_type == DType::f32 || rows.scale_type == DType::f16);
  };
  for (size_t h = 0; h < kv.rows_k.size(); ++h)
    require(fits(kv.rows_k[h], kv.dim) && fits(kv.rows_v[h], kv.dim_v), "decode: rows of codes of head ", h,
            " do not hold ", kv.dim, " and ", kv.dim_v,
            " channels in whole groups with scales of f32 or f16");
}

// The parts of a call that do not depend on how keys are held, and the tensors its arguments point into.
struct DecodeOptions {
  Tensor chosen, sink, slopes;

  void set_pages(DecodeArgs& args, const Tensor& pages, int64_t limit) {
    if (!pages) return;
    require(pages.rank() == 4 && pages.dtype() == DType::i32 && pages.dim(0) == args.batch &&
                pages.dim(1) == args.heads_q && pages.dim(2) == args.rows,
            "decode: pages is ", pages, ", expected i32[", args.batch, ",", args.heads_q, ",", args.rows,
            ",R]");
    chosen = pages.contiguous();
    args.pages = chosen.data<int32_t>(), args.selected = chosen.dim(3);
    const auto [low, high] = std::minmax_element(args.pages, args.pages + chosen.size());
    require(chosen.size() == 0 || (*low >= -1 && *high < limit), "decode: pages reach from ",
            chosen.size() ? *low : 0, " to ", chosen.size() ? *high : 0, ", outside -1..", limit - 1);
  }

  void set(DecodeArgs& args, const Tensor& q, const AttentionParams& params, int64_t longest) {
    require(params.scores == ScoreArithmetic::automatic, "decode: the arithmetic of scores cannot be chosen");
    require(!params.k_len && !params.bias_q && !params.bias_k,
            "decode: k_len, bias_q and bias_k are not accepted; lengths stand in the cache");
    args.scale = params.scale != 0 ? params.scale : 1.0f / std::sqrt(static_cast<float>(q.dim(3)));
    args.softcap = params.softcap;
    args.window_left = params.visible.window_left, args.prefix = params.visible.prefix;
    if (params.sink) {
      check_shape("sink", params.sink, {args.heads_q}, DType::f32);
      sink = params.sink.contiguous();
      args.sink = sink.data<float>();
    }
    if (params.slopes) {
      check_shape("slopes", params.slopes, {args.heads_q}, DType::f32);
      slopes = params.slopes.contiguous();
      args.slopes = slopes.data<float>();
    }
    if (params.bias) {
      args.bias_stride = check_scores("bias", params.bias, DType::f32, q, longest);
      args.bias = params.bias.data<float>();
    }
    if (params.mask) {
      args.mask_stride = check_scores("mask", params.mask, DType::u8, q, longest);
      args.mask = params.mask.data<uint8_t>();
    }
  }
};

}  // namespace

PagedKv PagedKv::of(const Tensor& k, const Tensor& v, int64_t page_size) {
  require(page_size >= 1, "PagedKv: page_size = ", page_size, " is not positive");
  require(k.defined() && v.defined() && k.rank() == 4 && v.rank() == 4, "PagedKv: k and v must have 4 axes");
  PagedKv kv{.k = k, .v = v, .table = {}, .lengths = Tensor::empty({k.dim(0)}, DType::i32)};
  std::fill_n(kv.lengths.data<int32_t>(), k.dim(0), static_cast<int32_t>(k.dim(2)));
  kv.sequence_page = page_size;
  return kv;
}

AttentionResult decode(const Tensor& q, const PagedKv& kv, const Tensor& pages,
                       const AttentionParams& params) {
  const Tensor &k = kv.k, &v = kv.v;
  require(q.defined() && is_float(q.dtype()), "decode: q must be f32, f16 or bf16");
  check_floats("q", q, q.dtype());
  check_floats("k", k, q.dtype());
  check_floats("v", v, q.dtype());
  const int64_t batch = q.dim(0), heads = q.dim(1), rows = q.dim(2);
  require(k.dim(0) == v.dim(0) && k.dim(1) == v.dim(1) && k.dim(2) == v.dim(2) && k.dim(3) == q.dim(3),
          "decode: q ", q, ", k ", k, " and v ", v, " do not fit together");
  require(k.dim(1) > 0 ? heads % k.dim(1) == 0 : heads == 0, "decode: q has ", heads, " heads, k has ",
          k.dim(1), ": not a multiple");
  require(kv.lengths.defined(), "decode: lengths are missing");
  check_shape("lengths", kv.lengths, {batch}, DType::i32);
  const Tensor lengths = kv.lengths.contiguous();

  const bool whole = kv.sequence_page > 0;
  const int64_t page_size = kv.page_size();
  Tensor table;
  if (whole) {
    require(k.dim(0) == batch, "decode: k has ", k.dim(0), " sequences, q has ", batch);
  } else {
    require(kv.table.defined() && kv.table.rank() == 2 && kv.table.dim(0) == batch &&
                kv.table.dtype() == DType::i32,
            "decode: table must be i32[", batch, ",max_pages]");
    table = kv.table.contiguous();
  }
  int64_t longest = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t length = lengths.data<int32_t>()[b];
    const int64_t capacity = whole ? k.dim(2) : table.dim(1) * page_size;
    require(length >= 0 && length <= capacity, "decode: lengths[", b, "] = ", length, " is outside 0..",
            capacity);
    longest = std::max(longest, length);
    if (whole) continue;
    const int32_t* entries = table.data<int32_t>() + b * table.dim(1);
    for (int64_t p = 0; p * page_size < length; ++p)
      require(entries[p] >= 0 && entries[p] < k.dim(0), "decode: table[", b, ",", p, "] = ", entries[p],
              " is outside the ", k.dim(0), " pages of k");
  }

  AttentionResult result{Tensor::empty({batch, heads, rows, v.dim(3)}, v.dtype()),
                         Tensor::empty({batch, heads, rows})};
  DecodeArgs args;
  args.type = q.dtype();
  args.q = q.raw(), args.k = k.raw(), args.v = v.raw();
  args.o = result.o.raw(), args.lse = result.lse.data<float>();
  args.batch = batch, args.heads_q = heads, args.heads_kv = k.dim(1), args.rows = rows;
  args.dim = q.dim(3), args.dim_v = v.dim(3);
  args.q_stride = {q.stride(0), q.stride(1), q.stride(2)};
  args.k_stride = {whole ? 0 : k.stride(0), whole ? k.stride(0) : 0, k.stride(1), k.stride(2)};
  args.v_stride = {whole ? 0 : v.stride(0), whole ? v.stride(0) : 0, v.stride(1), v.stride(2)};
  args.page_size = page_size;
  if (!whole) args.table = table.data<int32_t>(), args.table_pages = table.dim(1);
  args.lengths = lengths.data<int32_t>();

  DecodeOptions options;
  const int64_t held = whole ? k.dim(2) : table.dim(1) * page_size;
  options.set_pages(args, pages, (held + page_size - 1) / page_size);
  options.set(args, q, params, longest);
  require(q.device() == Device::cpu() && k.device() == Device::cpu() && v.device() == Device::cpu(),
          "decode: q, k and v must be on the CPU");
  cpu::decode(args);
  return result;
}

AttentionResult decode(const Tensor& q, const CodedKv& kv, const Tensor& pages, int64_t page_size,
                       const AttentionParams& params) {
  require(q.defined() && q.device() == Device::cpu(), "decode: q must be on the CPU");
  check_floats("q", q, DType::f32);
  require(q.dim(0) == 1 && q.dim(3) == kv.dim, "decode: q is ", q, ", expected f32[1,Hq,Tq,", kv.dim, "]");
  require(kv.heads_together >= 1 && kv.heads >= 1 && kv.heads % kv.heads_together == 0, "decode: ", kv.heads,
          " coded heads cannot be read ", kv.heads_together, " at a time");
  require(q.dim(1) % kv.heads == 0, "decode: q has ", q.dim(1), " heads, the codes have ", kv.heads,
          ": not a multiple");
  require(kv.length >= 0 && kv.length < std::numeric_limits<int32_t>::max() && kv.dim_v >= 0,
          "decode: a coded sequence has ", kv.length, " tokens of ", kv.dim_v, " channels");
  require(static_cast<bool>(kv.read), "decode: a coded sequence cannot be read");
  require(!pages || page_size >= 1, "decode: page_size = ", page_size, " is not positive");
  check_rows(kv);
  AttentionResult result{Tensor::empty({1, q.dim(1), q.dim(2), kv.dim_v}),
                         Tensor::empty({1, q.dim(1), q.dim(2)})};
  const auto length = static_cast<int32_t>(kv.length);
  DecodeArgs args;
  args.q = q.raw(), args.o = result.o.raw(), args.lse = result.lse.data<float>();
  args.batch = 1, args.heads_q = q.dim(1), args.rows = q.dim(2);
  args.coded = &kv, args.heads_together = kv.heads_together, args.heads_kv = kv.heads / kv.heads_together;
  args.dim = kv.dim, args.dim_v = kv.dim_v;
  args.q_stride = {q.stride(0), q.stride(1), q.stride(2)};
  args.page_size = pages ? page_size : std::max<int64_t>(kv.length, 1);
  args.lengths = &length;
  DecodeOptions options;
  options.set_pages(args, pages, (kv.length + args.page_size - 1) / args.page_size);
  options.set(args, q, params, kv.length);
  cpu::decode(args);
  return result;
}

}  // namespace fovea::kernels
