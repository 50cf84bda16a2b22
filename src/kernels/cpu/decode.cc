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
#include <vector>

#include "fovea/core/memory.h"
#include "fovea/core/thread_pool.h"
#include "fovea/kernels/decode_args.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/decode.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/tile-inl.h"

#ifndef FOVEA_KERNELS_CPU_DECODE_ONCE
#define FOVEA_KERNELS_CPU_DECODE_ONCE
namespace fovea::kernels {
namespace {

constexpr int64_t kChunk = 64;
constexpr int64_t kSplit = 512;
constexpr int64_t kMaxSplits = 64;
// Padded widths are multiples of this many floats: the widest vector of any target.
constexpr int64_t kPad = 16;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

constexpr int64_t padded(int64_t width) { return (width + kPad - 1) / kPad * kPad; }

// Where the keys of one sequence lie that some row may see: [0,prefix) and [begin,length).
struct Span {
  int64_t prefix, begin, length;
  int64_t count() const { return prefix + length - begin; }
};

// Pages that at least one row of a kv head selected, ascending, with a bit for each row that did.
struct PageUnion {
  int64_t words = 0;  // of 64 rows each
  std::vector<int32_t> page;
  std::vector<uint64_t> rows;  // [page.size(), words]
};

struct Split {
  int64_t batch, head;  // kv head
  int64_t begin, end;   // indices into the span's keys, or into the pages of the union
};

// The keys a task works on at a time.
struct Chunk {
  int64_t count = 0;
  bool shared = true;  // every row selected every key
  int32_t position[kChunk];
  int32_t slot[kChunk];  // index into the page union
  const void* k[kChunk];
  const void* v[kChunk];
};

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

struct Task {
  const DecodeArgs* args;
  Split split;
  Span span;
  const PageUnion* selected;  // nullptr: all keys of the span
};

// Scratch of one worker.
struct Scratch {
  Chunk chunks[2];               // the one being worked on, and the next
  memory::Buffer<float> q;       // [rows, padded(dim)], scaled
  memory::Buffer<float> scores;  // [rows, kChunk]
  memory::Buffer<float> k, v;    // [kChunk, padded width]: keys and values as f32 where that pays
};

// Partial results of one split: m, l [rows], a [rows, padded(dim_v)].
struct Partial {
  float *maximum, *sum, *values;
};

Span span_of(const DecodeArgs& a, int64_t b) {
  const int64_t length = a.lengths[b];
  if (a.window_left < 0) return {0, 0, length};
  const int64_t begin = std::clamp<int64_t>(length - a.rows - a.window_left, 0, length);
  return {std::min(a.prefix, begin), begin, length};
}

// Appends keys `position`, `position + 1`, ... that lie in one stretch of memory.
void append_run(const DecodeArgs& a, const Split& s, int64_t position, int64_t run, Chunk& chunk) {
  const int64_t bytes = size_of(a.type);
  int64_t page = 0, first = position;
  if (a.table != nullptr) {
    page = a.table[s.batch * a.table_pages + position / a.page_size];
    first = position % a.page_size;
  }
  auto start = [&](const void* base, const DecodeArgs::Keys& stride) {
    return static_cast<const char*>(base) + bytes * (page * stride.page + s.batch * stride.batch +
                                                     s.head * stride.head + first * stride.token);
  };
  const char* k = start(a.k, a.k_stride);
  const char* v = start(a.v, a.v_stride);
  for (int64_t j = 0; j < run; ++j) {
    chunk.position[chunk.count + j] = static_cast<int32_t>(position + j);
    chunk.k[chunk.count + j] = k + j * bytes * a.k_stride.token;
    chunk.v[chunk.count + j] = v + j * bytes * a.v_stride.token;
  }
  chunk.count += run;
}

// Fills the chunk from key index `t` of the task on and returns the index that follows.
int64_t gather_span(const Task& task, int64_t t, Chunk& chunk) {
  const DecodeArgs& a = *task.args;
  const Span& span = task.span;
  while (chunk.count < kChunk && t < task.split.end) {
    const bool in_prefix = t < span.prefix;
    const int64_t position = in_prefix ? t : t - span.prefix + span.begin;
    int64_t run = std::min(kChunk - chunk.count, (in_prefix ? span.prefix : task.split.end) - t);
    run = std::min(run, task.split.end - t);
    if (a.table != nullptr) run = std::min(run, a.page_size - position % a.page_size);
    append_run(a, task.split, position, run, chunk);
    t += run;
  }
  return t;
}

// The same for selected pages; `t` counts tokens of the union's pages.
int64_t gather_pages(const Task& task, int64_t t, Chunk& chunk) {
  const DecodeArgs& a = *task.args;
  const PageUnion& selected = *task.selected;
  const int64_t rows = a.heads_q / a.heads_kv * a.rows, end = task.split.end * a.page_size;
  while (chunk.count < kChunk && t < end) {
    const int64_t slot = t / a.page_size, offset = t % a.page_size;
    const int64_t position = selected.page[static_cast<size_t>(slot)] * a.page_size + offset;
    const int64_t rest = std::min(a.page_size - offset, task.span.length - position);
    if (rest <= 0) {
      t += a.page_size - offset;
      continue;
    }
    const int64_t run = std::min(kChunk - chunk.count, rest);
    std::fill_n(chunk.slot + chunk.count, run, static_cast<int32_t>(slot));
    append_run(a, task.split, position, run, chunk);
    for (int64_t w = 0; w < selected.words; ++w) {
      const int64_t bits = std::min<int64_t>(64, rows - 64 * w);
      const uint64_t all = bits == 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1;
      chunk.shared = chunk.shared && selected.rows[static_cast<size_t>(slot * selected.words + w)] == all;
    }
    t += run == rest ? a.page_size - offset : run;
  }
  return t;
}

// Which keys of the chunk row `row` of head h sees, as 0 or 1.
void row_visibility(const Task& task, const Chunk& chunk, int64_t h, int64_t row, uint8_t* visible) {
  const DecodeArgs& a = *task.args;
  const int64_t at = task.span.length - a.rows + row;
  for (int64_t j = 0; j < chunk.count; ++j) {
    const int64_t p = chunk.position[j];
    visible[j] = p <= at && (a.window_left < 0 || p >= at - a.window_left || p < a.prefix);
  }
  if (task.selected != nullptr) {
    const int64_t bit = h % (a.heads_q / a.heads_kv) * a.rows + row;
    const uint64_t* rows = task.selected->rows.data() + bit / 64;
    for (int64_t j = 0; j < chunk.count; ++j)
      visible[j] &= static_cast<uint8_t>((rows[chunk.slot[j] * task.selected->words] >> (bit % 64)) & 1);
  }
  if (a.mask != nullptr) {
    const uint8_t* mask =
        a.mask + task.split.batch * a.mask_stride.batch + h * a.mask_stride.head + row * a.mask_stride.row;
    for (int64_t j = 0; j < chunk.count; ++j) visible[j] &= mask[chunk.position[j]] != 0;
  }
}

// Does every row see every key of the chunk?
bool all_visible(const Task& task, const Chunk& chunk) {
  const DecodeArgs& a = *task.args;
  if (!chunk.shared || a.mask != nullptr) return false;
  const int64_t first = chunk.position[0], last = chunk.position[chunk.count - 1];
  const int64_t at = task.span.length - a.rows;
  return last <= at && (a.window_left < 0 || first >= at + a.rows - 1 - a.window_left || last < a.prefix);
}

}  // namespace
}  // namespace fovea::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels {
namespace HWY_NAMESPACE {
namespace {

// Rows of queries that share each loaded key or value vector: as many as the registers hold.
#if HWY_TARGET <= HWY_AVX3
constexpr int kRows = 4;
#else
constexpr int kRows = 2;
#endif
constexpr int kColumns = 4;  // vectors of a value row whose sums are held in registers

// The sum of the 128-bit blocks of v, four floats.
template <class D>
HWY_INLINE void store_block_sum(D d, hn::Vec<D> v, float* out) {
  if constexpr (hn::MaxLanes(D()) <= 4) {
    hn::StoreU(v, d, out);
  } else {
    const hn::Half<D> half;
    store_block_sum(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)), out);
  }
}

// out[0..4) = the sums of the lanes of a, b, c, e.
HWY_INLINE void store_sums(Floats d, FloatVector a, FloatVector b, FloatVector c, FloatVector e, float* out) {
  const hn::RepartitionToWide<hn::RebindToUnsigned<Floats>> du64;
  const auto ab = hn::BitCast(du64, hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b)));
  const auto ce = hn::BitCast(du64, hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e)));
  store_block_sum(d,
                  hn::Add(hn::BitCast(d, hn::InterleaveLower(du64, ab, ce)),
                          hn::BitCast(d, hn::InterleaveUpper(du64, ab, ce))),
                  out);
}

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
    FloatVector s0[R], s1[R], s2[R], s3[R];
    for (int r = 0; r < R; ++r) s0[r] = s1[r] = s2[r] = s3[r] = hn::Zero(d);
    for (int64_t c = 0; c < width; c += kLanes) {
      const auto x0 = load_floats(k0 + c), x1 = load_floats(k1 + c), x2 = load_floats(k2 + c),
                 x3 = load_floats(k3 + c);
      for (int r = 0; r < R; ++r) {
        const auto y = hn::LoadU(d, q + r * width + c);
        s0[r] = hn::MulAdd(y, x0, s0[r]);
        s1[r] = hn::MulAdd(y, x1, s1[r]);
        s2[r] = hn::MulAdd(y, x2, s2[r]);
        s3[r] = hn::MulAdd(y, x3, s3[r]);
      }
    }
    for (int r = 0; r < R; ++r) store_sums(d, s0[r], s1[r], s2[r], s3[r], scores + r * kChunk + j);
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
void adjust_scores(const Task& task, const Chunk& chunk, int64_t h, int64_t row, float* s) {
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
void attend_chunk(const Task& task, Scratch& scratch, Chunk& chunk, const Chunk& next, const Partial& out) {
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
    row_visibility(task, chunk, h, r % a.rows, visible);
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
void load_queries(const Task& task, float* out) {
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
void attend_split_of(const Task& task, Scratch& scratch, const Partial& out) {
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
  auto gather = [&](Chunk& chunk) {
    chunk.count = 0;
    chunk.shared = true;
    t = task.selected ? gather_pages(task, t, chunk) : gather_span(task, t, chunk);
  };
  gather(scratch.chunks[0]);
  for (int turn = 0;; turn ^= 1) {
    Chunk &chunk = scratch.chunks[turn], &next = scratch.chunks[turn ^ 1];
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

void attend_split(const Task& task, Scratch& scratch, const Partial& out) {
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

// Lists what the rows of kv head `head` selected. `rows_of_page` is scratch.
void unite_pages(const DecodeArgs& a, int64_t b, int64_t head, std::vector<uint64_t>& rows_of_page,
                 PageUnion& out) {
  const int64_t rows = a.heads_q / a.heads_kv * a.rows;
  const int64_t pages = (a.lengths[b] + a.page_size - 1) / a.page_size;
  out.words = (rows + 63) / 64;
  out.page.clear();
  out.rows.clear();
  rows_of_page.assign(static_cast<size_t>(pages * out.words), 0);
  const int32_t* chosen = a.pages + (b * a.heads_q * a.rows + head * rows) * a.selected;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < a.selected; ++i) {
      const int64_t page = chosen[r * a.selected + i];
      if (page >= 0 && page < pages)
        rows_of_page[static_cast<size_t>(page * out.words + r / 64)] |= uint64_t{1} << (r % 64);
    }
  for (int64_t page = 0; page < pages; ++page) {
    const auto first = rows_of_page.begin() + page * out.words;
    if (std::all_of(first, first + out.words, [](uint64_t word) { return word == 0; })) continue;
    out.page.push_back(static_cast<int32_t>(page));
    out.rows.insert(out.rows.end(), first, first + out.words);
  }
}

// Units (keys or pages) of a split of `count` units of `tokens` tokens each: kSplit tokens or more, and no
// more than kMaxSplits splits.
int64_t units_of_split(int64_t count, int64_t tokens) {
  const int64_t least = std::max<int64_t>(1, kSplit / tokens);
  return least * std::max<int64_t>(1, (count + least * kMaxSplits - 1) / (least * kMaxSplits));
}

// What the calling thread keeps from step to step.
struct Plan {
  std::vector<PageUnion> unions;  // [batch, heads_kv]
  std::vector<uint64_t> rows_of_page;
  std::vector<Split> splits;         // in the order of batch, kv head, begin
  std::vector<int64_t> first_split;  // [batch * heads_kv + 1]
  memory::Buffer<float> partials;
};

void make_plan(const DecodeArgs& a, Plan& plan) {
  plan.splits.clear();
  plan.first_split.assign(1, 0);
  if (a.pages != nullptr) plan.unions.resize(static_cast<size_t>(a.batch * a.heads_kv));
  for (int64_t b = 0; b < a.batch; ++b)
    for (int64_t head = 0; head < a.heads_kv; ++head) {
      int64_t count = span_of(a, b).count(), tokens = 1;
      if (a.pages != nullptr) {
        PageUnion& selected = plan.unions[static_cast<size_t>(b * a.heads_kv + head)];
        unite_pages(a, b, head, plan.rows_of_page, selected);
        count = static_cast<int64_t>(selected.page.size());
        tokens = a.page_size;
      }
      const int64_t step = units_of_split(count, tokens);
      for (int64_t begin = 0; begin < count; begin += step)
        plan.splits.push_back({b, head, begin, std::min(begin + step, count)});
      plan.first_split.push_back(static_cast<int64_t>(plan.splits.size()));
    }
}

}  // namespace

void cpu::decode(const DecodeArgs& a) {
  if (a.batch * a.heads_q * a.rows == 0) return;
  thread_local Plan plan_of_thread;
  Plan& plan = plan_of_thread;
  make_plan(a, plan);
  const int64_t group = a.heads_q / a.heads_kv, rows = group * a.rows, width = padded(a.dim_v);
  const int64_t step = rows * (width + 2);
  plan.partials.reserve(static_cast<int64_t>(plan.splits.size()) * step);

  parallel_for(static_cast<int64_t>(plan.splits.size()), [&](int64_t i, int) {
    thread_local Scratch scratch;
    const Split& split = plan.splits[static_cast<size_t>(i)];
    const Task task{
        &a, split, span_of(a, split.batch),
        a.pages ? &plan.unions[static_cast<size_t>(split.batch * a.heads_kv + split.head)] : nullptr};
    float* partial = plan.partials.data() + i * step;
    HWY_DYNAMIC_DISPATCH(attend_split)(task, scratch, {partial, partial + rows, partial + 2 * rows});
  });
  parallel_for(a.batch * a.heads_kv, [&](int64_t i, int) {
    const int64_t first = plan.first_split[static_cast<size_t>(i)];
    const int64_t splits = plan.first_split[static_cast<size_t>(i + 1)] - first;
    const float* partial = plan.partials.data() + first * step;
    for (int64_t r = 0; r < rows; ++r) {
      const float sink = a.sink ? a.sink[i % a.heads_kv * group + r / a.rows] : -kInfinity;
      HWY_DYNAMIC_DISPATCH(merge_row)
      (partial + r, partial + rows + r, partial + 2 * rows + r * width, splits, step, sink, a, i * rows + r);
    }
  });
}

}  // namespace fovea::kernels
#endif
