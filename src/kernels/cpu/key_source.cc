// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/key_source.h"

#include <algorithm>

namespace fovea::kernels::cpu {

Hull hull_of(const AttentionArgs& args, const RowTile& rows) {
  // Both edges ascend with the query.
  const VisibleKeys first = args.visible_keys(rows.batch, rows.query);
  const VisibleKeys last = args.visible_keys(rows.batch, rows.query + rows.queries - 1);
  Hull hull{std::max(first.prefix, last.prefix), first.begin, last.end};
  if (hull.prefix >= hull.begin) hull = {0, 0, std::max(hull.prefix, hull.end)};
  return hull;
}

int64_t list_of(const KeyPlan& plan, const AttentionArgs& a, int64_t b, int64_t head, int64_t block) {
  const int64_t plan_head = plan.heads == 1 ? 0 : plan.heads == a.heads_q ? head : head / a.group();
  return ((plan.batches == 1 ? 0 : b) * plan.heads + plan_head) * plan.query_blocks() + block;
}

VisibleKeys columns_seen(const KeyTile& tile, const VisibleKeys& sees) {
  auto column = [&](int64_t key) -> int64_t {
    return tile.keys ? std::lower_bound(tile.keys, tile.keys + tile.count, key) - tile.keys
                     : std::clamp<int64_t>(key - tile.first, 0, tile.count);
  };
  return {column(sees.prefix), column(sees.begin), column(sees.end)};
}

bool all_seen(const AttentionArgs& args, const RowTile& rows, const KeyTile& tile) {
  // Both edges ascend with the query; the first row sees the fewest keys on the right, the last on the left.
  const auto sees_all = [&](int64_t query) {
    const VisibleKeys sees = args.visible_keys(rows.batch, query);
    return sees.begin <= tile.first && sees.end > tile.last();
  };
  return tile.count > 0 && sees_all(rows.query) && sees_all(rows.query + rows.queries - 1);
}

ListCursor::ListCursor(const KeyPlan& plan, int64_t list, const Hull& hull) : hull_(hull) {
  const auto i = static_cast<size_t>(list);
  range_ = plan.ranges.data() + plan.range_offsets[i];
  ranges_end_ = plan.ranges.data() + plan.range_offsets[i + 1];
  column_ = plan.columns.data() + plan.column_offsets[i];
  columns_end_ = plan.columns.data() + plan.column_offsets[i + 1];
  if (range_ < ranges_end_) at_ = range_->begin;
  settle();
}

// Moves to the next key inside the hull.
void ListCursor::settle() {
  for (;;) {
    while (range_ < ranges_end_ && at_ >= range_->end)
      if (++range_ < ranges_end_) at_ = range_->begin;
    const int32_t in_range = range_ < ranges_end_ ? at_ : kEnd;
    const int32_t in_columns = column_ < columns_end_ ? *column_ : kEnd;
    next_ = std::min(in_range, in_columns);
    if (next_ < hull_.prefix || (next_ >= hull_.begin && next_ < hull_.end)) return;
    if (next_ >= hull_.end) {
      next_ = kEnd;
      return;
    }
    // In the gap between prefix and window: jump over it.
    const auto target = static_cast<int32_t>(hull_.begin);
    column_ = std::lower_bound(column_, columns_end_, target);
    range_ = std::lower_bound(range_, ranges_end_, target,
                              [](const KeyPlan::Range& range, int32_t key) { return range.end <= key; });
    if (range_ < ranges_end_) at_ = std::max(range_->begin, target);
  }
}

void ListCursor::pop() {
  if (range_ < ranges_end_ && at_ == next_)
    ++at_;
  else
    ++column_;
  settle();
}

KeySource::KeySource(const AttentionArgs& args, const RowTile& rows, int64_t key_tile)
    : key_tile_(key_tile), hull_(hull_of(args, rows)) {
  at_ = hull_.prefix > 0 ? 0 : hull_.begin;
}

KeySource::KeySource(const AttentionArgs& args, const RowTile& rows, int64_t key_tile, const KeyPlan& plan,
                     int64_t first_list, int64_t lists, Buffers& buffers)
    : key_tile_(key_tile), hull_(hull_of(args, rows)), buffers_(&buffers) {
  buffers.keys.reserve(key_tile);
  if (lists > 1) buffers.members.reserve(lists * key_tile);
  cursors_.reserve(static_cast<size_t>(lists));
  for (int64_t i = 0; i < lists; ++i) cursors_.emplace_back(plan, first_list + i, hull_);
}

bool KeySource::next(KeyTile& tile) { return buffers_ ? next_gathered(tile) : next_range(tile); }

bool KeySource::next_range(KeyTile& tile) {
  if (at_ < hull_.begin && at_ >= hull_.prefix) at_ = hull_.begin;
  const int64_t stop = at_ < hull_.prefix ? hull_.prefix : hull_.end;
  if (at_ >= stop) return false;
  tile = {};
  tile.first = at_;
  tile.count = std::min(stop, (at_ / key_tile_ + 1) * key_tile_) - at_;
  at_ += tile.count;
  return true;
}

bool KeySource::next_gathered(KeyTile& tile) {
  int32_t* keys = buffers_->keys.data();
  uint8_t* members = buffers_->members.data();
  const bool shared = cursors_.size() > 1;
  int64_t count = 0;
  for (; count < key_tile_; ++count) {
    int32_t key = ListCursor::kEnd;
    for (const auto& cursor : cursors_) key = std::min(key, cursor.peek());
    if (key == ListCursor::kEnd) break;
    keys[count] = key;
    for (size_t list = 0; list < cursors_.size(); ++list) {
      const bool has = cursors_[list].peek() == key;
      if (has) cursors_[list].pop();
      if (shared) members[static_cast<int64_t>(list) * key_tile_ + count] = has;
    }
  }
  if (count == 0) return false;
  tile = {keys[0], count, keys, shared ? members : nullptr, key_tile_};
  if (keys[count - 1] - keys[0] + 1 == count) tile.keys = nullptr;
  return true;
}

}  // namespace fovea::kernels::cpu
