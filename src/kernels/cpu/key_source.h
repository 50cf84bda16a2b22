// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "fovea/core/memory.h"
#include "kernels/attention_args.h"

/// Where the inner loop of attention gets its keys: tiles of ascending keys, cut from one range or gathered
/// from the lists of a plan.
namespace fovea::kernels::cpu {

/// Query rows that meet the same keys: `heads` query heads of one kv head times `queries` consecutive
/// queries. Row r is query `query + r / heads` of head `head + r % heads`, so that visibility edges ascend
/// with r.
struct RowTile {
  int64_t batch = 0, head = 0, heads = 1, query = 0, queries = 0;

  int64_t rows() const { return heads * queries; }
  int64_t query_of(int64_t row) const { return query + row / heads; }
  int64_t head_of(int64_t row) const { return head + row % heads; }
};

struct KeyTile {
  int64_t first = 0, count = 0;
  const int32_t* keys = nullptr;     ///< ascending; null: first, first + 1, ...
  const uint8_t* members = nullptr;  ///< [lists][stride] 1 where the list has the key; null: all have all
  int64_t members_stride = 0;

  int64_t key(int64_t column) const { return keys ? keys[column] : first + column; }
  int64_t last() const { return key(count - 1); }
};

/// The columns of a tile that hold the keys `sees`.
VisibleKeys columns_seen(const KeyTile& tile, const VisibleKeys& sees);

/// Does every row see every key of the tile?
bool all_seen(const AttentionArgs& args, const RowTile& rows, const KeyTile& tile);

/// The list of a plan that block `block` of query head `head` reads.
int64_t list_of(const KeyPlan& plan, const AttentionArgs& a, int64_t b, int64_t head, int64_t block);

/// The keys that some row of a tile sees: [0, prefix) and [begin, end).
struct Hull {
  int64_t prefix = 0, begin = 0, end = 0;
};
Hull hull_of(const AttentionArgs& args, const RowTile& rows);

/// Walks the keys of one list of a plan in ascending order.
class ListCursor {
 public:
  static constexpr int32_t kEnd = INT32_MAX;

  ListCursor(const KeyPlan& plan, int64_t list, const Hull& hull);
  int32_t peek() const { return next_; }
  void pop();

 private:
  void settle();

  const KeyPlan::Range *range_, *ranges_end_;
  const int32_t *column_, *columns_end_;
  int32_t at_ = 0;  // within *range_
  int32_t next_ = kEnd;
  Hull hull_;
};

/// Hands out the key tiles of one row tile. The buffers live in the caller's scratch.
class KeySource {
 public:
  struct Buffers {
    memory::Buffer<int32_t> keys;
    memory::Buffer<uint8_t> members;
  };

  /// All keys the rows see. Tiles are cut at multiples of `key_tile`, so that a row meets the same cuts in
  /// whatever row tile it is.
  KeySource(const AttentionArgs& args, const RowTile& rows, int64_t key_tile);
  /// The union of `lists` consecutive lists of a plan, intersected with what the rows see.
  KeySource(const AttentionArgs& args, const RowTile& rows, int64_t key_tile, const KeyPlan& plan,
            int64_t first_list, int64_t lists, Buffers& buffers);

  bool next(KeyTile& tile);

 private:
  bool next_range(KeyTile& tile);
  bool next_gathered(KeyTile& tile);

  int64_t key_tile_;
  Hull hull_;
  int64_t at_ = 0;
  Buffers* buffers_ = nullptr;
  std::vector<ListCursor> cursors_;
};

}  // namespace fovea::kernels::cpu
