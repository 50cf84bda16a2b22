// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/key_source.h"

#include <algorithm>
#include <bit>

namespace fovea::kernels::cpu {
namespace {

// Tiles begin at multiples of this, so that arithmetic which groups neighbouring keys groups the same ones
// for a row in whatever row tile it is.
constexpr int64_t kAlignment = 32;

}  // namespace

Hull hull_of(const AttentionArgs& args, const RowTile& rows) {
  // Both edges ascend with the query.
  const VisibleKeys first = args.visible_keys(rows.batch, rows.query);
  const VisibleKeys last = args.visible_keys(rows.batch, rows.query + rows.queries - 1);
  Hull hull{std::max(first.prefix, last.prefix), first.begin, last.end};
  if (hull.prefix >= hull.begin) hull = {0, 0, std::max(hull.prefix, hull.end)};
  return hull;
}

int64_t list_size(const KeyPlan& plan, int64_t list) {
  const auto i = static_cast<size_t>(list);
  int64_t size = plan.column_offsets[i + 1] - plan.column_offsets[i];
  for (int64_t r = plan.range_offsets[i]; r < plan.range_offsets[i + 1]; ++r)
    size += plan.ranges[static_cast<size_t>(r)].end - plan.ranges[static_cast<size_t>(r)].begin;
  return size;
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
}

bool ListCursor::settle() {
  for (;;) {
    while (range_ < ranges_end_ && at_ >= range_->end)
      if (++range_ < ranges_end_) at_ = range_->begin;
    next_in_range_ = range_ < ranges_end_ ? at_ : INT64_MAX;
    const int64_t next = std::min<int64_t>(next_in_range_, column_ < columns_end_ ? *column_ : INT64_MAX);
    limit_ = next < hull_.prefix ? hull_.prefix : hull_.end;
    if (next >= hull_.end && next >= hull_.prefix) return false;
    if (next < hull_.prefix || next >= hull_.begin) return true;
    // In the gap between prefix and window: jump over it.
    const auto target = static_cast<int32_t>(hull_.begin);
    column_ = std::lower_bound(column_, columns_end_, target);
    range_ = std::lower_bound(range_, ranges_end_, target,
                              [](const KeyPlan::Range& range, int32_t key) { return range.end <= key; });
    if (range_ < ranges_end_) at_ = std::max(range_->begin, target);
  }
}

int64_t ListCursor::take(int32_t* to, int64_t room) {
  int64_t count = 0;
  while (count < room && settle()) {
    if (column_ == columns_end_ || next_in_range_ < *column_) {
      const int64_t stop = std::min({int64_t{range_->end}, limit_, at_ + room - count});
      while (at_ < stop) to[count++] = static_cast<int32_t>(at_++);
    } else {
      const int64_t stop = std::min(next_in_range_, limit_);
      const int32_t* end = column_ + std::min(room - count, columns_end_ - column_);
      while (column_ < end && *column_ < stop) to[count++] = *column_++;
    }
  }
  return count;
}

const int32_t* ListCursor::take_in_place(int64_t room, int64_t& count) {
  if (!settle() || column_ == columns_end_ || next_in_range_ < *column_) return nullptr;
  const int64_t stop = std::min(next_in_range_, limit_);
  const int32_t* end = column_ + std::min(room, columns_end_ - column_);
  if (end[-1] >= stop) {
    if (next_in_range_ < limit_ || limit_ < hull_.end) return nullptr;
    end = std::lower_bound(column_, end, stop);
  } else if (end == columns_end_ && range_ < ranges_end_ && end - column_ < room) {
    return nullptr;
  }
  const int32_t* first = column_;
  count = end - first;
  column_ = end;
  return first;
}

KeySource::KeySource(const AttentionArgs& args, const RowTile& rows, int64_t key_tile)
    : key_tile_(key_tile), hull_(hull_of(args, rows)) {
  at_ = hull_.prefix > 0 ? 0 : hull_.begin / kAlignment * kAlignment;
}

KeySource::KeySource(const AttentionArgs& args, const RowTile& rows, int64_t key_tile, const KeyPlan& plan,
                     int64_t list, memory::Buffer<int32_t>& buffer)
    : key_tile_(key_tile), hull_(hull_of(args, rows)) {
  buffer.reserve(key_tile);
  buffer_ = buffer.data();
  cursor_.emplace(plan, list, hull_);
}

bool KeySource::next(KeyTile& tile) { return cursor_ ? next_gathered(tile) : next_range(tile); }

bool KeySource::next_range(KeyTile& tile) {
  if (at_ >= hull_.prefix && hull_.begin >= hull_.end) return false;
  if (at_ < hull_.begin && at_ >= hull_.prefix) at_ = std::max(at_, hull_.begin / kAlignment * kAlignment);
  const int64_t cut = (at_ / key_tile_ + 1) * key_tile_;
  // The gap after the prefix is skipped unless it lies within one tile.
  const int64_t stop = at_ < hull_.prefix && hull_.begin >= cut ? hull_.prefix : hull_.end;
  if (at_ >= stop) return false;
  tile = {};
  tile.first = at_;
  tile.count = std::min(stop, cut) - at_;
  at_ += tile.count;
  return true;
}

bool KeySource::next_gathered(KeyTile& tile) {
  int64_t count = 0;
  const int32_t* keys = cursor_->take_in_place(key_tile_, count);
  if (!keys) {
    keys = buffer_;
    count = cursor_->take(buffer_, key_tile_);
  }
  if (count == 0) return false;
  tile = tile_of({keys, count});
  return true;
}

KeyTile tile_of(const Keys& keys) {
  KeyTile tile{.first = keys.keys[0], .count = keys.count, .keys = keys.keys};
  if (tile.last() - tile.first + 1 == tile.count) tile.keys = nullptr;
  return tile;
}

void ListSplit::split(const KeyPlan& plan, int64_t first_list, int64_t lists, const Hull& hull,
                      int64_t share) {
  shared_count_ = 0;
  int64_t size = 0;
  for (int64_t l = 0; l < lists; ++l) size += list_size(plan, first_list + l);
  keys_.reserve(size);
  int32_t* to = keys_.data();
  for (int64_t l = 0; l < lists; ++l) {
    ListCursor cursor(plan, first_list + l, hull);
    const int64_t most = list_size(plan, first_list + l);
    int64_t count = 0;
    const int32_t* keys = cursor.take_in_place(std::max<int64_t>(1, most), count);
    if (!keys) {
      count = cursor.take(to, most);
      keys = to;
    }
    rest_[l] = {keys, count};
    to += most;
  }
  if (share > 0) share_keys(plan.keys, lists, share);
}

void ListSplit::share_keys(int64_t keys, int64_t lists, int64_t share) {
  const int64_t blocks = keys / kBlock + 1;
  if (keys > prepared_) {
    lists_of_.reserve(blocks * kBlock), seen_.reserve(blocks);
    std::fill_n(lists_of_.data(), blocks * kBlock, uint32_t{0});
    std::fill_n(seen_.data(), blocks, uint8_t{0});
    prepared_ = keys;
  }
  uint32_t* lists_of = lists_of_.data();
  uint8_t* seen = seen_.data();
  int64_t total = 0;
  for (int64_t l = 0; l < lists; ++l) {
    total += rest_[l].count;
    for (int64_t c = 0; c < rest_[l].count; ++c) {
      const int32_t key = rest_[l].keys[c];
      lists_of[key] |= uint32_t{1} << l;
      seen[key / kBlock] = 1;
    }
  }
  collect_shared(blocks, total / share + 1, share);
  int32_t* to = keys_.data();
  for (int64_t l = 0; l < lists; ++l) {
    const Keys all = rest_[l];
    int64_t kept = 0;
    for (int64_t c = 0; c < all.count; ++c) {
      // Written in any case, kept where it is not shared.
      to[kept] = all.keys[c];
      kept += std::popcount(lists_of[all.keys[c]]) < share;
    }
    rest_[l] = {to, kept};
    to += kept;
  }
  for (int64_t block = 0; block < blocks; ++block)
    if (seen[block] != 0) {
      std::fill_n(lists_of + block * kBlock, kBlock, uint32_t{0});
      seen[block] = 0;
    }
}

void ListSplit::collect_shared(int64_t blocks, int64_t most, int64_t share) {
  shared_.reserve(most), members_.reserve(most);
  for (int64_t block = 0; block < blocks; ++block) {
    if (seen_[block] == 0) continue;
    for (int64_t four = block * kBlock; four < (block + 1) * kBlock; four += 4) {
      const uint32_t* lists_of = lists_of_.data() + four;
      if ((lists_of[0] | lists_of[1] | lists_of[2] | lists_of[3]) == 0) continue;
      for (int64_t i = 0; i < 4; ++i) {
        if (std::popcount(lists_of[i]) < share) continue;
        shared_[shared_count_] = static_cast<int32_t>(four + i);
        members_[shared_count_++] = lists_of[i];
      }
    }
  }
}

}  // namespace fovea::kernels::cpu
