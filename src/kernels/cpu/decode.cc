// SPDX-License-Identifier: Apache-2.0
// Attention of a few query rows over long caches.
//
// A split is a stretch of the keys that the rows of one kv head may see. Its task walks it in chunks of
// kChunk keys: scores of all rows, softmax, values. Per row a split leaves m = max s, l = sum exp(s - m) and
// a = sum exp(s - m) v; the splits of a head are merged in order.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "fovea/core/memory.h"
#include "fovea/core/thread_pool.h"
#include "kernels/cpu/bfloat16_unit.h"
#include "kernels/cpu/decode_plan.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/decode.cc"
#include "hwy/foreach_target.h"
#include "kernels/cpu/coded_values-inl.h"
#include "kernels/cpu/decode_rows-inl.h"

#ifndef FOVEA_KERNELS_CPU_DECODE_ONCE
#define FOVEA_KERNELS_CPU_DECODE_ONCE
namespace fovea::kernels {
namespace {

// Padded widths are multiples of this many floats: the widest vector of any target.
constexpr int64_t kPad = 16;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

constexpr int64_t padded(int64_t width) { return (width + kPad - 1) / kPad * kPad; }

// Scratch of one worker.
struct Scratch {
  cpu::DecodeChunk chunk;
  memory::Buffer<float> q;           // [rows, padded(dim)], scaled
  memory::Buffer<float> scores;      // [rows, kChunk]
  memory::Buffer<BFloat16> weights;  // likewise, where values are bf16 and multiplied natively
  memory::Buffer<float> k, v;        // [kChunk, heads read together, padded width]: f32 rows where that pays
  memory::Buffer<float> coded_k, coded_v;  // the same without padding, as codes are read
};

// Partial results of one split: m, l [rows], a [rows, padded(dim_v)].
struct Partial {
  float *maximum, *sum, *values;

  Partial(float* from, int64_t rows) : maximum(from), sum(from + rows), values(from + 2 * rows) {}
  static int64_t size(int64_t rows, int64_t width) { return rows * (width + 2); }

  Partial from_row(int64_t row, int64_t width) const {
    Partial part = *this;
    part.maximum += row, part.sum += row, part.values += row * width;
    return part;
  }
};

}  // namespace
}  // namespace fovea::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels {
namespace HWY_NAMESPACE {
namespace {

using cpu::all_visible;
using cpu::DecodeChunk;
using cpu::DecodeTask;
using cpu::kMaxSplits;

// Copies rows into f32, with zeros up to the padded width.
template <class T>
void widen(const void** rows, int64_t count, int64_t width, float* out) {
  for (int64_t j = 0; j < count; ++j, out += padded(width)) {
    load_row(static_cast<const T*>(rows[j]), width, 1.0f, out, padded(width));
    rows[j] = out;
  }
}

// s <- softcap tanh((s + bias - slope |p - j|) / softcap) for the keys of the chunk.
void adjust_scores(const DecodeTask& task, const DecodeChunk& chunk, int64_t h, int64_t row, float* s) {
  const DecodeArgs& a = *task.args;
  const Floats d;
  if (a.bias != nullptr) {
    const float* bias =
        a.bias + task.split.batch * a.bias_stride.batch + h * a.bias_stride.head + row * a.bias_stride.row;
    for (int64_t j = 0; j < chunk.count; ++j) s[j] += bias[chunk.position[j]];
  }
  if (a.slopes != nullptr) {
    const int64_t at = task.span.length - a.rows + row;
    for (int64_t j = 0; j < chunk.count; ++j)
      s[j] -= a.slopes[h] * std::abs(static_cast<float>(at - chunk.position[j]));
  }
  if (a.softcap > 0) {
    const auto cap = hn::Set(d, a.softcap), inverse = hn::Set(d, 1.0f / a.softcap);
    for (int64_t j = 0; j < chunk.count; j += kLanes)
      hn::StoreU(hn::Mul(cap, tanh_of(d, hn::Mul(hn::LoadU(d, s + j), inverse))), d, s + j);
  }
}

// m' = max(m, max s); s <- exp(s - m'); l <- l exp(m - m') + sum s; a <- a exp(m - m').
void softmax_row(float* s, int64_t count, float* maximum, float* sum, float* values, int64_t width) {
  const Floats d;
  std::fill(s + count, s + round_up(count, kLanes), -kInfinity);
  auto top = hn::Set(d, -kInfinity);
  for (int64_t j = 0; j < count; j += kLanes) top = hn::Max(top, hn::LoadU(d, s + j));
  const float before = *maximum;
  const float now = std::max(before, hn::GetLane(hn::MaxOfLanes(d, top)));
  const float shift = now == -kInfinity ? 0.0f : now;
  auto total = hn::Zero(d);
  for (int64_t j = 0; j < count; j += kLanes) {
    const auto p = exp_of(d, hn::Sub(hn::LoadU(d, s + j), hn::Set(d, shift)));
    hn::StoreU(p, d, s + j);
    total = hn::Add(total, p);
  }
  const float more = hn::GetLane(hn::SumOfLanes(d, total));
  if (now == before) {
    *sum += more;
    return;
  }
  const auto factor = exp_of(d, hn::Set(d, before - now));
  *sum = *sum * hn::GetLane(factor) + more;
  for (int64_t c = 0; c < width; c += kLanes)
    hn::StoreU(hn::Mul(factor, hn::LoadU(d, values + c)), d, values + c);
  *maximum = now;
}

// Calls body(row, integral_constant of the rows) for blocks of at most kMost rows.
template <int kMost, class Body>
HWY_INLINE void for_row_blocks(int64_t rows, const Body& body) {
  for (int64_t r = 0; r < rows; r += kMost) {
    const int64_t count = std::min<int64_t>(kMost, rows - r);
    if (count == 1) body(r, std::integral_constant<int, 1>());
    if constexpr (kMost >= 2)
      if (count == 2) body(r, std::integral_constant<int, 2>());
    if constexpr (kMost >= 4) {
      if (count == 3) body(r, std::integral_constant<int, 3>());
      if (count == 4) body(r, std::integral_constant<int, 4>());
    }
  }
}

template <class T>
void score_chunk(const void* const* k, int64_t count, const float* q, int64_t rows, int64_t width,
                 float* scores) {
  for_row_blocks<kRows>(rows, [&](int64_t r, auto block) HWY_ATTR {
    score_rows<block.value, T>(k, count, q + r * width, width, scores + r * kChunk);
  });
}

template <class T>
void value_chunk(const void* const* v, int64_t count, const float* weights, int64_t rows, int64_t width,
                 float* values) {
  const int64_t row_bytes = width * static_cast<int64_t>(sizeof(T));
  const int64_t step = std::max<int64_t>(8, kNearBytes / std::max<int64_t>(row_bytes, 1));
  for (int64_t j = 0; j < count; j += step) {
    const int64_t near = std::min(step, count - j);
    for_row_blocks<kRows>(rows, [&](int64_t r, auto block) HWY_ATTR {
      add_values<block.value, T>(v + j, near, weights + r * kChunk + j, width, values + r * width);
    });
  }
}

// Are rows of this type and width multiplied by the processor's bf16 dots?
template <class T>
bool dots_bfloat16(int64_t width) {
  return HWY_TARGET == HWY_AVX3 && std::is_same_v<T, BFloat16> && width % 32 == 0 &&
         cpu::bfloat16_unit() != cpu::BFloat16Unit::none;
}

// values[r] += sum_j weights[r][j] v[j] with weights rounded to bf16.
void dot_value_chunk(const void* const* v, int64_t count, const BFloat16* weights, int64_t rows,
                     int64_t width, float* values) {
#if HWY_TARGET == HWY_AVX3
  const int64_t step = std::max<int64_t>(8, kNearBytes / (2 * width));
  for (int64_t j = 0; j < count; j += step) {
    const auto add = [&](int64_t r, auto block) HWY_ATTR {
      dot_values<block.value>(v + j, std::min(step, count - j), weights + r * kChunk + j, width,
                              values + r * width);
    };
    if (dot_rows_of(width) == 2)
      for_row_blocks<2>(rows, add);
    else
      for_row_blocks<4>(rows, add);
  }
#else
  (void)v, (void)count, (void)weights, (void)rows, (void)width, (void)values;
#endif
}

// scores[r][j] = scale q[r] . k[j]
void dot_chunk(const void* const* k, int64_t count, const BFloat16* q, int64_t rows, int64_t width,
               float scale, float* scores) {
#if HWY_TARGET == HWY_AVX3
  for_row_blocks<kRows>(rows, [&](int64_t r, auto block) HWY_ATTR {
    dot_rows<block.value>(k, count, q + r * width, width, scores + r * kChunk);
  });
  const Floats d;
  for (int64_t r = 0; r < rows; ++r)
    for (float* s = scores + r * kChunk; s < scores + r * kChunk + count; s += kLanes)
      hn::StoreU(hn::Mul(hn::Set(d, scale), hn::LoadU(d, s)), d, s);
#else
  (void)k, (void)count, (void)q, (void)rows, (void)width, (void)scale, (void)scores;
#endif
}

// One chunk whose keys and values are rows of type TK and TV, and `rows` query rows from `first` on.
template <class TK, class TV>
void attend_chunk(const DecodeTask& task, Scratch& scratch, DecodeChunk& chunk, int64_t first, int64_t rows,
                  const Partial& whole_out) {
  const DecodeArgs& a = *task.args;
  const int64_t group = a.heads_q / a.heads_kv;
  const int64_t width = padded(a.dim), width_v = padded(a.dim_v);
  float* scores = scratch.scores.data();
  const float* q = scratch.q.data() + first * width;
  const Partial out = whole_out.from_row(first, width_v);
  [[maybe_unused]] const bool rounds = dots_bfloat16<TV>(a.dim_v);
  const auto fold = [&](int64_t r, float* s, int64_t count) HWY_ATTR {
    softmax_row(s, count, out.maximum + r, out.sum + r, out.values + r * width_v, width_v);
#if HWY_TARGET == HWY_AVX3
    if (rounds) round_weights(s, count, scratch.weights.data() + r * kChunk);
#endif
  };
  const auto add_values_of = [&](const void* const* v, int64_t count, int64_t r, int64_t some) HWY_ATTR {
    float* values = out.values + r * width_v;
    if (rounds)
      dot_value_chunk(v, count, scratch.weights.data() + r * kChunk, some, width_v, values);
    else
      value_chunk<TV>(v, count, scores + r * kChunk, some, width_v, values);
  };

  const int64_t whole = (chunk.count + 3) / 4 * 4;
  for (int64_t j = chunk.count; j < whole; ++j) chunk.k[j] = chunk.k[chunk.count - 1];
  if (dots_bfloat16<TK>(a.dim))
    dot_chunk(chunk.k, whole, reinterpret_cast<const BFloat16*>(q), rows, width, a.scale, scores);
  else
    score_chunk<TK>(chunk.k, whole, q, rows, width, scores);

  const bool shared = all_visible(task, chunk);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t h = task.split.head * group + (first + r) / a.rows, row = (first + r) % a.rows;
    float* s = scores + r * kChunk;
    adjust_scores(task, chunk, h, row, s);
    if (shared) {
      fold(r, s, chunk.count);
      continue;
    }
    // A weight of zero would still spread a NaN of a value that the row does not see: keep only what it sees.
    uint8_t visible[kChunk];
    const void* v[kChunk];
    int64_t count = 0;
    cpu::row_visibility(task, chunk, h, row, visible);
    for (int64_t j = 0; j < chunk.count; ++j) {
      s[count] = s[j];
      v[count] = chunk.v[j];
      count += visible[j];
    }
    if (count == 0) continue;
    fold(r, s, count);
    add_values_of(v, count, r, 1);
  }
  if (shared) add_values_of(chunk.v, chunk.count, 0, rows);
}

template <class T>
void load_queries(const DecodeTask& task, bool unscaled, float* out) {
  const DecodeArgs& a = *task.args;
  const int64_t group = a.heads_q / a.heads_kv, width = padded(a.dim);
  for (int64_t r = 0; r < group * a.rows; ++r) {
    const int64_t h = task.split.head * group + r / a.rows;
    const T* row = static_cast<const T*>(a.q) + task.split.batch * a.q_stride.batch + h * a.q_stride.head +
                   r % a.rows * a.q_stride.row;
    if (unscaled)
      std::memcpy(reinterpret_cast<T*>(out) + r * width, row, static_cast<size_t>(a.dim) * sizeof(T));
    else
      load_row(row, a.dim, a.scale, out + r * width, width);
  }
}

// Reads rows of `width` floats into rows of padded(width) where these differ.
void pad_rows(const memory::Buffer<float>& from, int64_t rows, int64_t width, float* to) {
  for (int64_t i = 0; i < rows; ++i)
    load_row(from.data() + i * width, width, 1.0f, to + i * padded(width), padded(width));
}

// Makes the keys and values of a chunk f32, for all heads that are read together.
void read_codes(const DecodeTask& task, const DecodeChunk& chunk, Scratch& scratch) {
  const DecodeArgs& a = *task.args;
  const int64_t heads = a.heads_together, step = heads * a.dim, step_v = heads * a.dim_v;
  const bool pad = padded(a.dim) != a.dim, pad_v = padded(a.dim_v) != a.dim_v;
  float* k = pad ? scratch.coded_k.data() : scratch.k.data();
  float* v = pad_v ? scratch.coded_v.data() : scratch.v.data();
  for (int64_t j = 0; j < chunk.count;) {
    int64_t run = 1;
    while (j + run < chunk.count && chunk.position[j + run] == chunk.position[j] + run) ++run;
    a.coded->read(task.split.head * heads, chunk.position[j], run, k + j * step, v + j * step_v);
    j += run;
  }
  if (pad) pad_rows(scratch.coded_k, chunk.count * heads, a.dim, scratch.k.data());
  if (pad_v) pad_rows(scratch.coded_v, chunk.count * heads, a.dim_v, scratch.v.data());
}

void attend_coded(const DecodeTask& task, Scratch& scratch, DecodeChunk& chunk, const Partial& out) {
  const DecodeArgs& a = *task.args;
  const int64_t heads = a.heads_together, rows = a.heads_q / a.heads_kv * a.rows / heads;
  read_codes(task, chunk, scratch);
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t j = 0; j < chunk.count; ++j) {
      chunk.k[j] = scratch.k.data() + (j * heads + head) * padded(a.dim);
      chunk.v[j] = scratch.v.data() + (j * heads + head) * padded(a.dim_v);
    }
    attend_chunk<float, float>(task, scratch, chunk, head * rows, rows, out);
  }
}

#if FOVEA_CODED_DOTS
// A chunk whose keys all rows see, from the codes themselves.
void attend_coded_rows(const DecodeTask& task, Scratch& scratch, CodedHead& codes, const DecodeChunk& chunk,
                       const Partial& out) {
  const DecodeArgs& a = *task.args;
  const int64_t group = a.heads_q / a.heads_kv, rows = group * a.rows, width_v = padded(a.dim_v);
  const auto head = static_cast<size_t>(task.split.head);
  float* scores = scratch.scores.data();
  codes.set_chunk(a.coded->rows_k[head], a.coded->rows_v[head], chunk);
  for_row_blocks<kRows>(
      rows, [&](int64_t r, auto block) HWY_ATTR { codes.score<block.value>(r, scores + r * kChunk); });
  for (int64_t r = 0; r < rows; ++r) {
    float* s = scores + r * kChunk;
    adjust_scores(task, chunk, task.split.head * group + r / a.rows, r % a.rows, s);
    softmax_row(s, chunk.count, out.maximum + r, out.sum + r, out.values + r * width_v, width_v);
  }
  codes.add_values(scores, rows, out.values, width_v);
}
#endif

template <class T>
void attend_split_of(const DecodeTask& task, Scratch& scratch, const Partial& out) {
  const DecodeArgs& a = *task.args;
  const int64_t rows = a.heads_q / a.heads_kv * a.rows;
  const int64_t width = padded(a.dim), width_v = padded(a.dim_v);
  // Several blocks of rows read a key again, and a ragged row cannot be read by whole vectors: then convert
  // each chunk once.
  const bool coded = a.coded != nullptr, many = rows > 2 * kRows && sizeof(T) == 2;
  const bool widen_k = (many && !dots_bfloat16<T>(a.dim)) || width != a.dim;
  const bool widen_v = (many && !dots_bfloat16<T>(a.dim_v)) || width_v != a.dim_v;
  scratch.q.reserve(rows * width);
  scratch.scores.reserve(rows * kChunk);
  const bool rounds = dots_bfloat16<T>(a.dim_v) && !coded;
  if (rounds) scratch.weights.reserve(rows * kChunk);
  DecodeChunk& chunk = scratch.chunk;
  chunk.limit = coded || widen_k || widen_v ? cpu::kCopiedChunk : kChunk;
  const int64_t copies = chunk.limit * a.heads_together;
  if (widen_k || coded) scratch.k.reserve(copies * width);
  if (widen_v || coded) scratch.v.reserve(copies * width_v);
  if (coded) {
    scratch.coded_k.reserve(copies * a.dim);
    scratch.coded_v.reserve(copies * a.dim_v);
  }
  load_queries<T>(task, dots_bfloat16<T>(a.dim) && !widen_k, scratch.q.data());
  std::fill_n(out.maximum, rows, -kInfinity);
  std::fill_n(out.sum, rows, 0.0f);
  std::fill_n(out.values, rows * width_v, 0.0f);

#if FOVEA_CODED_DOTS
  thread_local CodedHead codes;
  const auto head = static_cast<size_t>(task.split.head);
  const bool by_codes =
      coded && !a.coded->rows_k.empty() && codes.set(a.coded->rows_k[head], a.coded->rows_v[head]);
  if (by_codes) codes.queries.set(codes.k, scratch.q.data(), rows, width);
#endif
  int64_t t = task.split.begin * (task.selected ? a.page_size : 1);
  for (;;) {
    chunk.count = 0;
    chunk.shared = true;
    t = cpu::gather(task, t, chunk);
    if (chunk.count == 0) break;
#if FOVEA_CODED_DOTS
    if (by_codes && all_visible(task, chunk)) {
      attend_coded_rows(task, scratch, codes, chunk, out);
      continue;
    }
#endif
    if (coded) {
      attend_coded(task, scratch, chunk, out);
      continue;
    }
    if (widen_k) widen<T>(chunk.k, chunk.count, a.dim, scratch.k.data());
    if (widen_v) widen<T>(chunk.v, chunk.count, a.dim_v, scratch.v.data());
    if (widen_k && widen_v)
      attend_chunk<float, float>(task, scratch, chunk, 0, rows, out);
    else if (widen_k)
      attend_chunk<float, T>(task, scratch, chunk, 0, rows, out);
    else if (widen_v)
      attend_chunk<T, float>(task, scratch, chunk, 0, rows, out);
    else
      attend_chunk<T, T>(task, scratch, chunk, 0, rows, out);
  }
#if HWY_TARGET == HWY_AVX3
  for (int64_t r = 0; rounds && r < rows; ++r) order_channels(width_v, out.values + r * width_v);
#endif
}

// L = log(exp(sink) + sum_n exp(m_n) l_n), o = sum_n exp(m_n - L) a_n.
template <class T>
void merge_row_of(const Partial& part, int64_t splits, int64_t step, float sink, const DecodeArgs& a,
                  int64_t row) {
  const Floats d;
  const int64_t width = padded(a.dim_v);
  float top = sink;
  for (int64_t n = 0; n < splits; ++n) top = std::max(top, part.maximum[n * step]);
  const float shift = top == -kInfinity ? 0.0f : top;
  float weight[kMaxSplits];
  float total = std::exp(sink - shift);
  for (int64_t n = 0; n < splits; ++n) {
    weight[n] = std::exp(part.maximum[n * step] - shift);
    total += weight[n] * part.sum[n * step];
  }
  a.lse[row] = shift + std::log(total);
  const float inverse = total == 0 ? 0.0f : 1.0f / total;
  T* o = static_cast<T*>(a.o) + row * a.dim_v;
  for (int64_t n = 0; n < splits; ++n) weight[n] *= inverse;
  for (int64_t c = 0; c < width; c += kLanes) {
    auto mixed = hn::Zero(d);
    for (int64_t n = 0; n < splits; ++n)
      mixed = hn::MulAdd(hn::Set(d, weight[n]), hn::LoadU(d, part.values + n * step + c), mixed);
    HWY_ALIGN T tail[kPad];
    T* target = c + kLanes <= a.dim_v ? o + c : tail;
    store_floats(mixed, target);
    if (target == tail && c < a.dim_v) std::memcpy(o + c, tail, static_cast<size_t>(a.dim_v - c) * sizeof(T));
  }
}

void attend_split(const DecodeTask& task, Scratch& scratch, const Partial& out) {
  switch (task.args->type) {
    case DType::f16:
      return attend_split_of<Half>(task, scratch, out);
    case DType::bf16:
      return attend_split_of<BFloat16>(task, scratch, out);
    default:
      return attend_split_of<float>(task, scratch, out);
  }
}

void merge_row(const Partial& part, int64_t splits, int64_t step, float sink, const DecodeArgs& a,
               int64_t row) {
  switch (a.type) {
    case DType::f16:
      return merge_row_of<Half>(part, splits, step, sink, a, row);
    case DType::bf16:
      return merge_row_of<BFloat16>(part, splits, step, sink, a, row);
    default:
      return merge_row_of<float>(part, splits, step, sink, a, row);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace fovea::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
namespace {

HWY_EXPORT(attend_split);
HWY_EXPORT(merge_row);

// Outside `cpu`, which has target namespaces of its own.
void attend_split_here(const cpu::DecodeTask& task, Scratch& scratch, const Partial& out) {
  HWY_DYNAMIC_DISPATCH(attend_split)(task, scratch, out);
}
void merge_row_here(const Partial& part, int64_t splits, int64_t step, float sink, const DecodeArgs& a,
                    int64_t row) {
  HWY_DYNAMIC_DISPATCH(merge_row)(part, splits, step, sink, a, row);
}

}  // namespace

void cpu::decode(const DecodeArgs& a) {
  if (a.batch * a.heads_q * a.rows == 0) return;
  thread_local cpu::DecodePlan plan_of_thread;
  thread_local memory::Buffer<float> partials_of_thread;
  cpu::DecodePlan& plan = plan_of_thread;
  memory::Buffer<float>& partials = partials_of_thread;
  cpu::make_plan(a, plan);
  const int64_t group = a.heads_q / a.heads_kv, rows = group * a.rows, width = padded(a.dim_v);
  const int64_t step = Partial::size(rows, width);
  partials.reserve(static_cast<int64_t>(plan.splits.size()) * step);

  parallel_for(static_cast<int64_t>(plan.splits.size()), [&](int64_t i, int) {
    thread_local Scratch scratch;
    const cpu::DecodeSplit& split = plan.splits[static_cast<size_t>(i)];
    const cpu::DecodeTask task{
        &a, split, cpu::span_of(a, split.batch),
        a.pages ? &plan.unions[static_cast<size_t>(split.batch * a.heads_kv + split.head)] : nullptr};
    attend_split_here(task, scratch, Partial(partials.data() + i * step, rows));
  });
  parallel_for(a.batch * a.heads_kv, [&](int64_t i, int) {
    const int64_t first = plan.first_split[static_cast<size_t>(i)];
    const int64_t splits = plan.first_split[static_cast<size_t>(i + 1)] - first;
    const Partial partial(partials.data() + first * step, rows);
    for (int64_t r = 0; r < rows; ++r) {
      const float sink = a.sink ? a.sink[i % a.heads_kv * group + r / a.rows] : -kInfinity;
      merge_row_here(partial.from_row(r, width), splits, step, sink, a, i * rows + r);
    }
  });
}

}  // namespace fovea::kernels
#endif
