// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/decode_args.h"

/// Which keys decode reads, in what order, and which rows see them.
namespace fovea::kernels::cpu {

/// Keys worked on at a time, at most: going back and forth between keys and values costs a memory latency.
inline constexpr int64_t kChunk = 512;
/// The same where rows are first copied as f32 or are codes: the copies then stay in a near cache, and
/// integer sums over so many keys do not overflow.
inline constexpr int64_t kCopiedChunk = 64;
/// Splits of one sequence.
inline constexpr int64_t kMaxSplits = 64;

/// Where the keys of one sequence lie that some row may see: [0,prefix) and [begin,length).
struct Span {
  int64_t prefix, begin, length;
  int64_t count() const { return prefix + length - begin; }
};

/// Pages that at least one row of a kv head selected, ascending, with a bit for each row that did.
struct PageUnion {
  int64_t words = 0;  // of 64 rows each
  std::vector<int32_t> page;
  std::vector<uint64_t> rows;  // [page.size(), words]
};

struct DecodeSplit {
  int64_t batch, head;  // kv head
  int64_t begin, end;   // indices into the span's keys, or into the pages of the union
};

/// The keys a task works on at a time.
struct DecodeChunk {
  int64_t count = 0, limit = kChunk;
  bool shared = true;  // every row selected every key
  int32_t position[kChunk];
  int32_t slot[kChunk];  // index into the page union
  const void* k[kChunk];
  const void* v[kChunk];
};

struct DecodeTask {
  const DecodeArgs* args;
  DecodeSplit split;
  Span span;
  const PageUnion* selected;  // nullptr: all keys of the span
};

/// The tasks of a call, kept from step to step.
struct DecodePlan {
  std::vector<PageUnion> unions;  // [batch, heads_kv]
  std::vector<uint64_t> rows_of_page;
  std::vector<DecodeSplit> splits;   // in the order of batch, kv head, begin
  std::vector<int64_t> first_split;  // [batch * heads_kv + 1]
};

/// Split points depend on the length of each sequence (and the pages chosen of it) alone.
void make_plan(const DecodeArgs& args, DecodePlan& plan);

Span span_of(const DecodeArgs& args, int64_t b);

/// Fills an empty chunk from key index `t` of the task on and returns the index that follows. Where pages are
/// selected, `t` counts the tokens of the union's pages.
int64_t gather(const DecodeTask& task, int64_t t, DecodeChunk& chunk);

/// Which keys of the chunk row `row` of head h sees, as 0 or 1.
void row_visibility(const DecodeTask& task, const DecodeChunk& chunk, int64_t h, int64_t row,
                    uint8_t* visible);

/// Does every row see every key of the chunk?
bool all_visible(const DecodeTask& task, const DecodeChunk& chunk);

}  // namespace fovea::kernels::cpu
