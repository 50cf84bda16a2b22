// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>

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
  const int32_t* keys = nullptr;      ///< ascending; null: first, first + 1, ...
  const uint32_t* members = nullptr;  ///< [count] bit l: list l of the rows has the key; null: all have all

  int64_t key(int64_t column) const { return keys ? keys[column] : first + column; }
  int64_t last() const { return key(count - 1); }
};

/// Ascending keys.
struct Keys {
  const int32_t* keys = nullptr;
  int64_t count = 0;
};
/// A tile of at least one key.
KeyTile tile_of(const Keys& keys);

/// The columns of a tile that hold the keys `sees`.
VisibleKeys columns_seen(const KeyTile& tile, const VisibleKeys& sees);

/// Does every row see every key of the tile?
bool all_seen(const AttentionArgs& args, const RowTile& rows, const KeyTile& tile);

/// The list of a plan that block `block` of query head `head` reads.
int64_t list_of(const KeyPlan& plan, const AttentionArgs& a, int64_t b, int64_t head, int64_t block);

/// Keys of a list.
int64_t list_size(const KeyPlan& plan, int64_t list);

/// The keys that some row of a tile sees: [0, prefix) and [begin, end).
struct Hull {
  int64_t prefix = 0, begin = 0, end = 0;
};
Hull hull_of(const AttentionArgs& args, const RowTile& rows);

/// Walks the keys of one list of a plan that lie in a hull, in ascending order.
class ListCursor {
 public:
  ListCursor(const KeyPlan& plan, int64_t list, const Hull& hull);
  /// Copies up to `room` further keys; fewer only at the end.
  int64_t take(int32_t* to, int64_t room);
  /// The next `room` keys, or the rest, where they stand in the plan's columns one after another; null where
  /// they do not.
  const int32_t* take_in_place(int64_t room, int64_t& count);

 private:
  // The next key and where the stretch of visible keys around it ends; false at the end.
  bool settle();

  const KeyPlan::Range *range_, *ranges_end_;
  const int32_t *column_, *columns_end_;
  int64_t at_ = 0;  // within *range_
  Hull hull_;
  int64_t next_in_range_ = 0, limit_ = 0;
};

/// Hands out the key tiles of one row tile.
class KeySource {
 public:
  /// All keys the rows see, and a few beside them. Tiles are cut at multiples of `key_tile`, so that a row
  /// meets the same cuts in whatever row tile it is.
  KeySource(const AttentionArgs& args, const RowTile& rows, int64_t key_tile);
  /// One list of a plan, intersected with what the rows see. `buffer` is the caller's scratch.
  KeySource(const AttentionArgs& args, const RowTile& rows, int64_t key_tile, const KeyPlan& plan,
            int64_t list, memory::Buffer<int32_t>& buffer);

  bool next(KeyTile& tile);

 private:
  bool next_range(KeyTile& tile);
  bool next_gathered(KeyTile& tile);

  int64_t key_tile_;
  Hull hull_;
  int64_t at_ = 0;
  int32_t* buffer_ = nullptr;
  std::optional<ListCursor> cursor_;
};

/// The keys of up to kMostLists consecutive lists of a plan, split into those that many lists share and what
/// is left of each list. Keeps its buffers from one split to the next.
class ListSplit {
 public:
  static constexpr int64_t kMostLists = 32;

  /// Shared is what at least `share` of the lists have; with share = 0, nothing is, and lists that lie in the
  /// plan's columns are not copied.
  void split(const KeyPlan& plan, int64_t first_list, int64_t lists, const Hull& hull, int64_t share);

  Keys shared() const { return {shared_.data(), shared_count_}; }
  const uint32_t* members() const { return members_.data(); }  ///< of each shared key
  Keys rest(int64_t list) const { return rest_[list]; }

 private:
  static constexpr int64_t kBlock = 64;

  void share_keys(int64_t keys, int64_t lists, int64_t share);
  void collect_shared(int64_t blocks, int64_t most, int64_t share);

  int64_t shared_count_ = 0;
  memory::Buffer<int32_t> keys_, shared_;
  memory::Buffer<uint32_t> members_;
  memory::Buffer<uint32_t> lists_of_;  // [keys]: bit l where list l has the key; all 0 between splits
  memory::Buffer<uint8_t> seen_;       // [keys / kBlock]: is one of a block in any list? Likewise
  int64_t prepared_ = -1;              // keys for which both are set up
  Keys rest_[kMostLists];
};

}  // namespace fovea::kernels::cpu
