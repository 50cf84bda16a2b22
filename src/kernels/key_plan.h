// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

namespace fovea::kernels {

/// Which keys each block of `block_q` query rows of each head may read: a sorted list of disjoint key ranges
/// and a sorted list of single keys outside those ranges. Block lists are ranges, column stripes are single
/// keys, and block_q = 1 gives every row its own keys. The executor intersects it with the visibility of the
/// call.
///
/// Lists are stored one after another for (batch, head, query block), in that order. `batches` is 1 or B and
/// `heads` is 1, Hkv or Hq: a plan may be shared, and keys gathered for a shared list are gathered once.
struct KeyPlan {
  struct Range {
    int32_t begin, end;
  };

  int64_t block_q = 64;
  int64_t batches = 1, heads = 1;
  int64_t queries = 0, keys = 0;       ///< Tq, Tk
  std::vector<int64_t> range_offsets;  ///< [batches * heads * query_blocks() + 1]
  std::vector<Range> ranges;
  std::vector<int64_t> column_offsets;  ///< likewise
  std::vector<int32_t> columns;

  int64_t query_blocks() const { return (queries + block_q - 1) / block_q; }
  int64_t lists() const { return batches * heads * query_blocks(); }
};

/// Throws Error unless offsets ascend, ranges and columns are sorted, disjoint and inside [0, keys), and
/// sizes agree with a call of B batch rows, Hq and Hkv heads, Tq rows and Tk keys.
void check(const KeyPlan& plan, int64_t batch, int64_t heads_q, int64_t heads_kv, int64_t queries,
           int64_t keys);

}  // namespace fovea::kernels
