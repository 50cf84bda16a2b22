// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/decode_plan.h"

#include <algorithm>

namespace fovea::kernels::cpu {
namespace {

constexpr int64_t kSplit = 512;  // keys of a split, or more

// Appends keys `position`, `position + 1`, ... that lie in one stretch of memory.
void append_run(const DecodeArgs& a, const DecodeSplit& s, int64_t position, int64_t run,
                DecodeChunk& chunk) {
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
int64_t gather_span(const DecodeTask& task, int64_t t, DecodeChunk& chunk) {
  const DecodeArgs& a = *task.args;
  const Span& span = task.span;
  while (chunk.count < chunk.limit && t < task.split.end) {
    const bool in_prefix = t < span.prefix;
    const int64_t position = in_prefix ? t : t - span.prefix + span.begin;
    int64_t run = std::min(chunk.limit - chunk.count, (in_prefix ? span.prefix : task.split.end) - t);
    run = std::min(run, task.split.end - t);
    if (a.table != nullptr) run = std::min(run, a.page_size - position % a.page_size);
    append_run(a, task.split, position, run, chunk);
    t += run;
  }
  return t;
}

// The same for selected pages; `t` counts tokens of the union's pages.
int64_t gather_pages(const DecodeTask& task, int64_t t, DecodeChunk& chunk) {
  const DecodeArgs& a = *task.args;
  const PageUnion& selected = *task.selected;
  const int64_t rows = a.heads_q / a.heads_kv * a.rows, end = task.split.end * a.page_size;
  while (chunk.count < chunk.limit && t < end) {
    const int64_t slot = t / a.page_size, offset = t % a.page_size;
    const int64_t position = selected.page[static_cast<size_t>(slot)] * a.page_size + offset;
    const int64_t rest = std::min(a.page_size - offset, task.span.length - position);
    if (rest <= 0) {
      t += a.page_size - offset;
      continue;
    }
    const int64_t run = std::min(chunk.limit - chunk.count, rest);
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

}  // namespace

Span span_of(const DecodeArgs& a, int64_t b) {
  const int64_t length = a.lengths[b];
  if (a.window_left < 0) return {0, 0, length};
  const int64_t begin = std::clamp<int64_t>(length - a.rows - a.window_left, 0, length);
  return {std::min(a.prefix, begin), begin, length};
}

int64_t gather(const DecodeTask& task, int64_t t, DecodeChunk& chunk) {
  return task.selected ? gather_pages(task, t, chunk) : gather_span(task, t, chunk);
}

void row_visibility(const DecodeTask& task, const DecodeChunk& chunk, int64_t h, int64_t row,
                    uint8_t* visible) {
  const DecodeArgs& a = *task.args;
  const int64_t at = task.span.length - a.rows + row;
  for (int64_t j = 0; j < chunk.count; ++j) {
    const int64_t p = chunk.position[j];
    visible[j] = (a.window_right < 0 || p <= at + a.window_right) &&
                 (a.window_left < 0 || p >= at - a.window_left || p < a.prefix);
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

bool all_visible(const DecodeTask& task, const DecodeChunk& chunk) {
  const DecodeArgs& a = *task.args;
  if (!chunk.shared || a.mask != nullptr) return false;
  const int64_t first = chunk.position[0], last = chunk.position[chunk.count - 1];
  const int64_t at = task.span.length - a.rows;
  return (a.window_right < 0 || last <= at + a.window_right) &&
         (a.window_left < 0 || first >= at + a.rows - 1 - a.window_left || last < a.prefix);
}

void make_plan(const DecodeArgs& a, DecodePlan& plan) {
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

}  // namespace fovea::kernels::cpu
