// SPDX-License-Identifier: Apache-2.0
#include "fovea/cache/tiled_storage.h"

#include <algorithm>
#include <numeric>
#include <span>

#include "fovea/core/thread_pool.h"

namespace fovea::cache {
namespace {

// A tile of decoded keys and values should stay in the second-level cache.
constexpr int64_t kTileBytes = 256 << 10;

}  // namespace

int64_t TiledStorage::tokens_per_tile() const {
  const int64_t row = heads_per_tile() * (dim_ + dim_v_) * size_of(DType::f32);
  return std::max<int64_t>(16, kTileBytes / std::max<int64_t>(row, 1) / 16 * 16);
}

void TiledStorage::read(int64_t slot, int64_t count, const Tensor& k, const Tensor& v) const {
  const int64_t step = tokens_per_tile(), chunks = (count + step - 1) / step, group = heads_per_tile();
  parallel_for(heads_ / group * chunks, [&](int64_t task, int) {
    const int64_t head = task / chunks * group, first = task % chunks * step,
                  last = std::min(count, first + step);
    const Tensor keys = Tensor::empty({last - first, group, dim_});
    const Tensor values = v.defined() ? Tensor::empty({last - first, group, dim_v_}) : Tensor();
    decode_tile(head, slot + first, last - first, keys, values);
    const auto part = [&](const Tensor& x) { return x.slice(0, head, head + group).slice(1, first, last); };
    part(k).copy_from(keys.transpose(0, 1));
    if (!v.defined()) return;
    restore_values(values);
    part(v).copy_from(values.transpose(0, 1));
  });
}

kernels::AttentionResult TiledStorage::attend(const Tensor& q_any, const Tensor& pages, int64_t page_size) {
  const Tensor q = q_any.contiguous();
  const int64_t groups = heads_ / heads_per_tile(), heads_q = q.dim(1), per_group = heads_q / groups,
                rows = q.dim(2);
  // Several rows see different numbers of the newest tokens, and the same of all others.
  const bool ragged = rows > 1;
  const int64_t common = ragged ? slots() - rows : slots();
  const int64_t page = pages.defined() ? page_size : tokens_per_tile();
  plan_tiles(pages, common, page, heads_q);

  const auto tiles = static_cast<int64_t>(tiles_.size());
  parts_.resize(static_cast<size_t>(tiles + (ragged ? groups : 0)));
  scratch_.resize(static_cast<size_t>(threads()));
  parallel_for(static_cast<int64_t>(parts_.size()), [&](int64_t task, int worker) {
    Scratch& scratch = scratch_[static_cast<size_t>(worker)];
    parts_[static_cast<size_t>(task)] =
        task < tiles ? attend_tile(tiles_[static_cast<size_t>(task)], q, pages, common, page, scratch)
                     : attend_newest(task - tiles, q, scratch);
  });

  kernels::AttentionResult result{Tensor::empty({1, heads_q, rows, dim_v_}),
                                  Tensor::empty({1, heads_q, rows})};
  std::vector<kernels::AttentionResult> of_group;
  for (int64_t group = 0; group < groups; ++group) {
    of_group.clear();
    for (int64_t t = 0; t < tiles; ++t)
      if (tiles_[static_cast<size_t>(t)].group == group) of_group.push_back(parts_[static_cast<size_t>(t)]);
    if (ragged) of_group.push_back(parts_[static_cast<size_t>(tiles + group)]);
    const auto merged = kernels::merge(of_group);
    const auto part = [&](const Tensor& x) { return x.slice(1, group * per_group, (group + 1) * per_group); };
    part(result.o).copy_from(merged.o);
    part(result.lse).copy_from(merged.lse);
  }
  parts_.clear();
  restore_values(result.o);
  return result;
}

void TiledStorage::plan_tiles(const Tensor& pages, int64_t slots, int64_t page_size, int64_t heads_q) {
  const int64_t groups = heads_ / heads_per_tile(), per_group = heads_q / groups;
  const int64_t pages_per_tile = std::max<int64_t>(1, tokens_per_tile() / page_size);
  pages_.resize(static_cast<size_t>(groups));
  tiles_.clear();
  int64_t tokens = 0;
  for (int64_t group = 0; group < groups; ++group) {
    auto& read = pages_[static_cast<size_t>(group)];
    if (pages.defined()) {
      union_of_pages(pages, group * per_group, per_group, read);
      tokens += tokens_of_pages(read, page_size, slots);
    } else {
      read.resize(static_cast<size_t>((slots + page_size - 1) / page_size));
      std::iota(read.begin(), read.end(), 0);
      tokens += this->slots();
    }
    const auto count = static_cast<int64_t>(read.size());
    for (int64_t first = 0; first < count; first += pages_per_tile)
      tiles_.push_back({group, read.data() + first, std::min(pages_per_tile, count - first)});
  }
  bytes_read_ = tokens * token_bytes() / groups;
}

kernels::AttentionResult TiledStorage::attend_tile(const Tile& tile, const Tensor& q, const Tensor& pages,
                                                   int64_t slots, int64_t page_size, Scratch& scratch) const {
  const int64_t group = heads_per_tile(), per_group = q.dim(1) * group / heads_, rows = q.dim(2);
  const int64_t page = std::min(page_size, slots);
  scratch.k.reserve(tile.count * group * page * dim_);
  scratch.v.reserve(tile.count * group * page * dim_v_);
  int64_t length = 0;
  for (int64_t i = 0; i < tile.count; ++i) {
    const int64_t first = tile.pages[i] * page_size, count = std::min(page_size, slots - first);
    const auto place = [&](const memory::Buffer<float>& buffer, int64_t width) {
      return Tensor::wrap(buffer.data() + i * page * group * width, {count, group, width}, DType::f32);
    };
    decode_tile(tile.group * group, first, count, place(scratch.k, dim_), place(scratch.v, dim_v_));
    length += count;  // only the last page of all may be ragged, and it is the last of its tile
  }

  // All rows see all of the tile: they are further heads of one row.
  const Tensor part = q.slice(1, tile.group * per_group, (tile.group + 1) * per_group)
                          .reshape({1, per_group * rows, 1, dim_});
  scratch.pages.reserve(tile.count + 1);
  std::iota(scratch.pages.data(), scratch.pages.data() + tile.count, 0);
  auto wanted_length = static_cast<int32_t>(length);
  kernels::PagedKv kv;
  kv.k = Tensor::wrap(scratch.k.data(), {tile.count, page, group, dim_}, DType::f32).transpose(1, 2);
  kv.v = Tensor::wrap(scratch.v.data(), {tile.count, page, group, dim_v_}, DType::f32).transpose(1, 2);
  kv.table = Tensor::wrap(scratch.pages.data(), {1, tile.count}, DType::i32);
  kv.lengths = Tensor::wrap(&wanted_length, {1}, DType::i32);

  Tensor wanted;
  if (pages.defined()) {
    // Page ids become places in the tile; both lists ascend.
    wanted = Tensor::empty({1, per_group, 1, tile.count}, DType::i32);
    std::fill_n(wanted.data<int32_t>(), wanted.size(), -1);
    for (int64_t h = 0; h < per_group; ++h) {
      const int32_t* of_head = &pages.at<int32_t>(0, tile.group * per_group + h, 0, 0);
      int32_t* out = &wanted.at<int32_t>(0, h, 0, 0);
      for (int64_t r = 0, i = 0; r < pages.dim(3) && of_head[r] >= 0 && i < tile.count;) {
        if (of_head[r] == tile.pages[i]) *out++ = static_cast<int32_t>(i);
        if (of_head[r] <= tile.pages[i])
          ++r;
        else
          ++i;
      }
    }
  }
  auto result = kernels::decode(part, kv, wanted);
  return {result.o.reshape({1, per_group, rows, dim_v_}), result.lse.reshape({1, per_group, rows})};
}

kernels::AttentionResult TiledStorage::attend_newest(int64_t group, const Tensor& q, Scratch& scratch) const {
  const int64_t heads = heads_per_tile(), per_group = q.dim(1) * heads / heads_, rows = q.dim(2);
  scratch.k.reserve(heads * rows * dim_);
  scratch.v.reserve(heads * rows * dim_v_);
  const Tensor k = Tensor::wrap(scratch.k.data(), {rows, heads, dim_}, DType::f32);
  const Tensor v = Tensor::wrap(scratch.v.data(), {rows, heads, dim_v_}, DType::f32);
  decode_tile(group * heads, slots() - rows, rows, k, v);
  return kernels::decode(
      q.slice(1, group * per_group, (group + 1) * per_group),
      kernels::PagedKv::of(k.transpose(0, 1).unsqueeze(0), v.transpose(0, 1).unsqueeze(0), rows));
}

}  // namespace fovea::cache
