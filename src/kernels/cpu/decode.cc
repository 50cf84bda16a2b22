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

#include "fovea/core/memory.h"
#include "fovea/core/thread_pool.h"
#include "kernels/cpu/decode_plan.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/decode.cc"
#include "hwy/foreach_target.h"
#include "kernels/cpu/tile-inl.h"

#ifndef FOVEA_KERNELS_CPU_DECODE_ONCE
#define FOVEA_KERNELS_CPU_DECODE_ONCE
namespace fovea::kernels {
namespace {

// Padded widths are multiples of this many floats: the widest vector of any target.
constexpr int64_t kPad = 16;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

constexpr int64_t padded(int64_t width) { return (width + kPad - 1) / kPad * kPad; }

// Rows of the next chunk, fetched into the second-level cache while this one is worked on: pages defeat the
// processor's own prefetching.
struct Ahead {
  const void* const* rows = nullptr;
  int64_t count = 0;
  int64_t first = 0, last = 0;  // bytes of each row

  void fetch(int64_t begin, int64_t end) const {
    for (int64_t j = begin; j < std::min(end, count); ++j)
      for (int64_t at = first; at < last; at += 64)
        __builtin_prefetch(static_cast<const char*>(rows[j]) + at, 0, 2);
  }
  // Of each row, the lines that begin at the elements [from, to).
  Ahead part(int64_t from, int64_t to, int64_t element_bytes) const {
    const auto line = [&](int64_t element) { return (element * element_bytes + 63) / 64 * 64; };
    return {rows, count, line(from), std::min(line(to), last)};
  }
};

// Scratch of one worker.
struct Scratch {
  cpu::DecodeChunk chunks[2];    // the one being worked on, and the next
  memory::Buffer<float> q;       // [rows, padded(dim)], scaled
  memory::Buffer<float> scores;  // [rows, kChunk]
  memory::Buffer<float> k, v;    // [kChunk, padded width]: keys and values as f32 where that pays
};

// Partial results of one split: m, l [rows], a [rows, padded(dim_v)].
struct Partial {
  float *maximum, *sum, *values;
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
using cpu::kChunk;
using cpu::kMaxSplits;

// Rows of queries that share each loaded key or value vector: as many as the registers hold.
#if HWY_TARGET <= HWY_AVX3
constexpr int kRows = 4;
#else
constexpr int kRows = 2;
#endif
constexpr int kColumns = 4;  // vectors of a value row whose sums are held in registers

// scores[r][j] = q[r] . k[j] for R rows; `count` is rounded up to 4 keys, whose pointers must be valid.
template <int R, class T>
void score_rows(const void* const* k, int64_t count, const Ahead& ahead, const float* q, int64_t width,
                float* scores) {
  const Floats d;
  for (int64_t j = 0; j < count; j += 4) {
    ahead.fetch(j, j + 4);
    const T* HWY_RESTRICT k0 = static_cast<const T*>(k[j]);
    const T* HWY_RESTRICT k1 = static_cast<const T*>(k[j + 1]);
    const T* HWY_RESTRICT k2 = static_cast<const T*>(k[j + 2]);
    const T* HWY_RESTRICT k3 = static_cast<const T*>(k[j + 3]);
    FloatVector sum[R][4];
    for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = sum[r][2] = sum[r][3] = hn::Zero(d);
    for (int64_t c = 0; c < width; c += kLanes) {
      const auto x0 = load_floats(k0 + c), x1 = load_floats(k1 + c);
      const auto x2 = load_floats(k2 + c), x3 = load_floats(k3 + c);
      for (int r = 0; r < R; ++r) {
        const auto y = hn::LoadU(d, q + r * width + c);
        sum[r][0] = hn::MulAdd(y, x0, sum[r][0]);
        sum[r][1] = hn::MulAdd(y, x1, sum[r][1]);
        sum[r][2] = hn::MulAdd(y, x2, sum[r][2]);
        sum[r][3] = hn::MulAdd(y, x3, sum[r][3]);
      }
    }
    for (int r = 0; r < R; ++r) sum_four(sum[r], scores + r * kChunk + j);
  }
}

// values[r] += sum_j weights[r][j] v[j] for R rows and C vectors of columns.
template <int R, int C, class T>
HWY_INLINE void add_columns(const void* const* v, int64_t count, const Ahead& ahead, const float* weights,
                            int64_t column, int64_t width, float* values) {
  const Floats d;
  FloatVector sum[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sum[r][c] = hn::LoadU(d, values + r * width + column + c * kLanes);
  for (int64_t j = 0; j < count; ++j) {
    ahead.fetch(j, j + 1);
    const T* HWY_RESTRICT row = static_cast<const T*>(v[j]) + column;
    FloatVector x[C];
    for (int c = 0; c < C; ++c) x[c] = load_floats(row + c * kLanes);
    for (int r = 0; r < R; ++r) {
      const auto p = hn::Set(d, weights[r * kChunk + j]);
      for (int c = 0; c < C; ++c) sum[r][c] = hn::MulAdd(p, x[c], sum[r][c]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) hn::StoreU(sum[r][c], d, values + r * width + column + c * kLanes);
}

template <int R, class T>
void add_values(const void* const* v, int64_t count, const Ahead& ahead, const float* weights, int64_t width,
                float* values) {
  const int64_t bytes = static_cast<int64_t>(sizeof(T));
  int64_t column = 0;
  for (; column + kColumns * kLanes <= width; column += kColumns * kLanes)
    add_columns<R, kColumns, T>(v, count, ahead.part(column, column + kColumns * kLanes, bytes), weights,
                                column, width, values);
  for (; column < width; column += kLanes)
    add_columns<R, 1, T>(v, count, ahead.part(column, column + kLanes, bytes), weights, column, width,
                         values);
}

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
    for (int64_t j = 0; j < kChunk; j += kLanes)
      hn::StoreU(hn::Mul(cap, tanh_of(d, hn::Mul(hn::LoadU(d, s + j), inverse))), d, s + j);
  }
}

// m' = max(m, max s); s <- exp(s - m'); l <- l exp(m - m') + sum s; a <- a exp(m - m').
void softmax_row(float* s, int64_t count, float* maximum, float* sum, float* values, int64_t width) {
  const Floats d;
  std::fill(s + count, s + kChunk, -kInfinity);
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

template <class T>
void score_chunk(const void* const* k, int64_t count, const Ahead& ahead, const float* q, int64_t rows,
                 int64_t width, float* scores) {
  for (int64_t r = 0; r < rows; r += kRows) {
    const float* block = q + r * width;
    float* out = scores + r * kChunk;
    switch (std::min<int64_t>(kRows, rows - r)) {
      case 1:
        score_rows<1, T>(k, count, r == 0 ? ahead : Ahead(), block, width, out);
        break;
      case 2:
        score_rows<2, T>(k, count, r == 0 ? ahead : Ahead(), block, width, out);
        break;
      case 3:
        score_rows<3, T>(k, count, r == 0 ? ahead : Ahead(), block, width, out);
        break;
      default:
        score_rows<kRows, T>(k, count, r == 0 ? ahead : Ahead(), block, width, out);
    }
  }
}

template <class T>
void value_chunk(const void* const* v, int64_t count, const Ahead& ahead, const float* weights, int64_t rows,
                 int64_t width, float* values) {
  for (int64_t r = 0; r < rows; r += kRows) {
    const float* block = weights + r * kChunk;
    float* out = values + r * width;
    switch (std::min<int64_t>(kRows, rows - r)) {
      case 1:
        add_values<1, T>(v, count, r == 0 ? ahead : Ahead(), block, width, out);
        break;
      case 2:
        add_values<2, T>(v, count, r == 0 ? ahead : Ahead(), block, width, out);
        break;
      case 3:
        add_values<3, T>(v, count, r == 0 ? ahead : Ahead(), block, width, out);
        break;
      default:
        add_values<kRows, T>(v, count, r == 0 ? ahead : Ahead(), block, width, out);
    }
  }
}

// One chunk whose keys and values are rows of type TK and TV.
template <class TK, class TV>
void attend_chunk(const DecodeTask& task, Scratch& scratch, DecodeChunk& chunk, const DecodeChunk& next,
                  const Partial& out) {
  const DecodeArgs& a = *task.args;
  const int64_t group = a.heads_q / a.heads_kv, rows = group * a.rows;
  const int64_t width = padded(a.dim), width_v = padded(a.dim_v);
  float* scores = scratch.scores.data();

  const int64_t whole = (chunk.count + 3) / 4 * 4;
  for (int64_t j = chunk.count; j < whole; ++j) chunk.k[j] = chunk.k[chunk.count - 1];
  score_chunk<TK>(chunk.k, whole, {next.k, next.count, 0, a.dim * size_of(a.type)}, scratch.q.data(), rows,
                  width, scores);

  Ahead ahead_v{next.v, next.count, 0, a.dim_v * size_of(a.type)};
  const bool shared = all_visible(task, chunk);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t h = task.split.head * group + r / a.rows;
    float* s = scores + r * kChunk;
    float* values = out.values + r * width_v;
    adjust_scores(task, chunk, h, r % a.rows, s);
    if (shared) {
      softmax_row(s, chunk.count, out.maximum + r, out.sum + r, values, width_v);
      continue;
    }
    // A weight of zero would still spread a NaN of a value that the row does not see: keep only what it sees.
    uint8_t visible[kChunk];
    const void* v[kChunk];
    int64_t count = 0;
    cpu::row_visibility(task, chunk, h, r % a.rows, visible);
    for (int64_t j = 0; j < chunk.count; ++j) {
      s[count] = s[j];
      v[count] = chunk.v[j];
      count += visible[j];
    }
    if (count == 0) continue;
    softmax_row(s, count, out.maximum + r, out.sum + r, values, width_v);
    add_values<1, TV>(v, count, ahead_v, s, width_v, values);
    ahead_v.count = 0;
  }
  if (shared) value_chunk<TV>(chunk.v, chunk.count, ahead_v, scores, rows, width_v, out.values);
}

template <class T>
void load_queries(const DecodeTask& task, float* out) {
  const DecodeArgs& a = *task.args;
  const int64_t group = a.heads_q / a.heads_kv, width = padded(a.dim);
  for (int64_t r = 0; r < group * a.rows; ++r) {
    const int64_t h = task.split.head * group + r / a.rows;
    load_row(static_cast<const T*>(a.q) + task.split.batch * a.q_stride.batch + h * a.q_stride.head +
                 r % a.rows * a.q_stride.row,
             a.dim, a.scale, out + r * width, width);
  }
}

template <class T>
void attend_split_of(const DecodeTask& task, Scratch& scratch, const Partial& out) {
  const DecodeArgs& a = *task.args;
  const int64_t rows = a.heads_q / a.heads_kv * a.rows;
  const int64_t width = padded(a.dim), width_v = padded(a.dim_v);
  // Several blocks of rows read a key again, and a ragged row cannot be read by whole vectors: then convert
  // each chunk once.
  const bool many = rows > 2 * kRows && sizeof(T) == 2;
  const bool widen_k = many || width != a.dim, widen_v = many || width_v != a.dim_v;
  scratch.q.reserve(rows * width);
  scratch.scores.reserve(rows * kChunk);
  if (widen_k) scratch.k.reserve(kChunk * width);
  if (widen_v) scratch.v.reserve(kChunk * width_v);
  load_queries<T>(task, scratch.q.data());
  std::fill_n(out.maximum, rows, -kInfinity);
  std::fill_n(out.sum, rows, 0.0f);
  std::fill_n(out.values, rows * width_v, 0.0f);

  int64_t t = task.split.begin * (task.selected ? a.page_size : 1);
  auto gather = [&](DecodeChunk& chunk) {
    chunk.count = 0;
    chunk.shared = true;
    t = cpu::gather(task, t, chunk);
  };
  gather(scratch.chunks[0]);
  for (int turn = 0;; turn ^= 1) {
    DecodeChunk &chunk = scratch.chunks[turn], &next = scratch.chunks[turn ^ 1];
    if (chunk.count == 0) break;
    gather(next);
    if (widen_k) widen<T>(chunk.k, chunk.count, a.dim, scratch.k.data());
    if (widen_v) widen<T>(chunk.v, chunk.count, a.dim_v, scratch.v.data());
    if (widen_k && widen_v)
      attend_chunk<float, float>(task, scratch, chunk, next, out);
    else if (widen_k)
      attend_chunk<float, T>(task, scratch, chunk, next, out);
    else if (widen_v)
      attend_chunk<T, float>(task, scratch, chunk, next, out);
    else
      attend_chunk<T, T>(task, scratch, chunk, next, out);
  }
}

// L = log(exp(sink) + sum_n exp(m_n) l_n), o = sum_n exp(m_n - L) a_n.
template <class T>
void merge_row_of(const float* maximum, const float* sum, const float* values, int64_t splits, int64_t step,
                  float sink, const DecodeArgs& a, int64_t row) {
  const Floats d;
  const int64_t width = padded(a.dim_v);
  float top = sink;
  for (int64_t n = 0; n < splits; ++n) top = std::max(top, maximum[n * step]);
  const float shift = top == -kInfinity ? 0.0f : top;
  float weight[kMaxSplits];
  float total = std::exp(sink - shift);
  for (int64_t n = 0; n < splits; ++n) {
    weight[n] = std::exp(maximum[n * step] - shift);
    total += weight[n] * sum[n * step];
  }
  a.lse[row] = shift + std::log(total);
  const float inverse = total == 0 ? 0.0f : 1.0f / total;
  T* o = static_cast<T*>(a.o) + row * a.dim_v;
  for (int64_t n = 0; n < splits; ++n) weight[n] *= inverse;
  for (int64_t c = 0; c < width; c += kLanes) {
    auto mixed = hn::Zero(d);
    for (int64_t n = 0; n < splits; ++n)
      mixed = hn::MulAdd(hn::Set(d, weight[n]), hn::LoadU(d, values + n * step + c), mixed);
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

void merge_row(const float* maximum, const float* sum, const float* values, int64_t splits, int64_t step,
               float sink, const DecodeArgs& a, int64_t row) {
  switch (a.type) {
    case DType::f16:
      return merge_row_of<Half>(maximum, sum, values, splits, step, sink, a, row);
    case DType::bf16:
      return merge_row_of<BFloat16>(maximum, sum, values, splits, step, sink, a, row);
    default:
      return merge_row_of<float>(maximum, sum, values, splits, step, sink, a, row);
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

}  // namespace

void cpu::decode(const DecodeArgs& a) {
  if (a.batch * a.heads_q * a.rows == 0) return;
  thread_local cpu::DecodePlan plan_of_thread;
  thread_local memory::Buffer<float> partials_of_thread;
  cpu::DecodePlan& plan = plan_of_thread;
  memory::Buffer<float>& partials = partials_of_thread;
  cpu::make_plan(a, plan);
  const int64_t group = a.heads_q / a.heads_kv, rows = group * a.rows, width = padded(a.dim_v);
  const int64_t step = rows * (width + 2);
  partials.reserve(static_cast<int64_t>(plan.splits.size()) * step);

  parallel_for(static_cast<int64_t>(plan.splits.size()), [&](int64_t i, int) {
    thread_local Scratch scratch;
    const cpu::DecodeSplit& split = plan.splits[static_cast<size_t>(i)];
    const cpu::DecodeTask task{
        &a, split, cpu::span_of(a, split.batch),
        a.pages ? &plan.unions[static_cast<size_t>(split.batch * a.heads_kv + split.head)] : nullptr};
    float* partial = partials.data() + i * step;
    HWY_DYNAMIC_DISPATCH(attend_split)(task, scratch, {partial, partial + rows, partial + 2 * rows});
  });
  parallel_for(a.batch * a.heads_kv, [&](int64_t i, int) {
    const int64_t first = plan.first_split[static_cast<size_t>(i)];
    const int64_t splits = plan.first_split[static_cast<size_t>(i + 1)] - first;
    const float* partial = partials.data() + first * step;
    for (int64_t r = 0; r < rows; ++r) {
      const float sink = a.sink ? a.sink[i % a.heads_kv * group + r / a.rows] : -kInfinity;
      HWY_DYNAMIC_DISPATCH(merge_row)
      (partial + r, partial + rows + r, partial + 2 * rows + r * width, splits, step, sink, a, i * rows + r);
    }
  });
}

}  // namespace fovea::kernels
#endif
