// SPDX-License-Identifier: Apache-2.0
#include "fovea/sparse/plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "fovea/core/thread_pool.h"

namespace fovea::sparse {
namespace {

KeyPlan empty_plan(int64_t batches, int64_t heads, int64_t queries, int64_t keys, int64_t block_q) {
  require(block_q >= 1, "a plan needs blocks of at least one row, got ", block_q);
  KeyPlan plan;
  plan.block_q = block_q;
  plan.batches = batches;
  plan.heads = heads;
  plan.queries = queries;
  plan.keys = keys;
  plan.range_offsets.reserve(static_cast<size_t>(plan.lists() + 1));
  plan.range_offsets.push_back(0);
  plan.column_offsets.reserve(static_cast<size_t>(plan.lists() + 1));
  plan.column_offsets.push_back(0);
  return plan;
}

void close_list(KeyPlan& plan) {
  plan.range_offsets.push_back(static_cast<int64_t>(plan.ranges.size()));
  plan.column_offsets.push_back(static_cast<int64_t>(plan.columns.size()));
}

// indices i32 [B,H,rows,R] with -1 where unused: one list of columns for each row.
KeyPlan plan_from_lists(const Tensor& indices, int64_t block_q, int64_t queries, int64_t keys) {
  require(indices.rank() == 4 && indices.dtype() == DType::i32, "a plan is made from i32 [B,H,rows,R], got ",
          indices.describe());
  KeyPlan plan = empty_plan(indices.dim(0), indices.dim(1), queries, keys, block_q);
  require(indices.dim(2) == plan.query_blocks(), "a plan of ", plan.query_blocks(),
          " query blocks got lists for ", indices.dim(2));
  const Tensor dense = indices.contiguous();
  const int32_t* row = dense.data<int32_t>();
  const int64_t width = dense.dim(3);
  for (int64_t list = 0; list < plan.lists(); ++list, row += width) {
    for (int64_t r = 0; r < width; ++r)
      if (row[r] >= 0) plan.columns.push_back(row[r]);
    close_list(plan);
  }
  return plan;
}

// Keys of the list in [begin, end): the overlap of its ranges plus its columns there.
int64_t count_keys(const KeyPlan& plan, int64_t list, int64_t begin, int64_t end) {
  int64_t total = 0;
  for (int64_t r = plan.range_offsets[static_cast<size_t>(list)];
       r < plan.range_offsets[static_cast<size_t>(list) + 1]; ++r) {
    const auto& range = plan.ranges[static_cast<size_t>(r)];
    total += std::max<int64_t>(0, std::min<int64_t>(range.end, end) - std::max<int64_t>(range.begin, begin));
  }
  const auto first = plan.columns.begin() + plan.column_offsets[static_cast<size_t>(list)];
  const auto last = plan.columns.begin() + plan.column_offsets[static_cast<size_t>(list) + 1];
  return total + (std::lower_bound(first, last, end) - std::lower_bound(first, last, begin));
}

}  // namespace

KeyPlan plan_from_blocks(const Tensor& blocks, int64_t block_q, int64_t block_k, int64_t queries,
                         int64_t keys) {
  require(blocks.rank() == 4 && blocks.dtype() == DType::u8, "a block plan is made from u8 [B,H,nQ,nK], got ",
          blocks.describe());
  require(block_k >= 1, "key blocks need at least one key, got ", block_k);
  KeyPlan plan = empty_plan(blocks.dim(0), blocks.dim(1), queries, keys, block_q);
  const int64_t key_blocks = (keys + block_k - 1) / block_k;
  require(blocks.dim(2) == plan.query_blocks() && blocks.dim(3) == key_blocks, "blocks has shape ",
          blocks.shape().to_string(), ", expected ", plan.query_blocks(), " query and ", key_blocks,
          " key blocks");
  const Tensor dense = blocks.contiguous();
  const uint8_t* row = dense.data<uint8_t>();
  for (int64_t list = 0; list < plan.lists(); ++list, row += key_blocks) {
    for (int64_t block = 0; block < key_blocks; ++block) {
      if (row[block] == 0) continue;
      const auto begin = static_cast<int32_t>(block * block_k);
      const auto end = static_cast<int32_t>(std::min(keys, (block + 1) * block_k));
      const bool continues = static_cast<int64_t>(plan.ranges.size()) > plan.range_offsets.back() &&
                             plan.ranges.back().end == begin;
      if (continues)
        plan.ranges.back().end = end;
      else
        plan.ranges.push_back({begin, end});
    }
    close_list(plan);
  }
  return plan;
}

KeyPlan plan_from_stripes(const Tensor& columns, int64_t block_q, int64_t queries, int64_t keys) {
  return plan_from_lists(columns, block_q, queries, keys);
}

KeyPlan plan_from_tokens(const Tensor& tokens, int64_t keys) {
  require(tokens.rank() == 4, "a token plan is made from i32 [B,H,Tq,R], got ", tokens.describe());
  return plan_from_lists(tokens, 1, tokens.dim(2), keys);
}

Tensor plan_mask(const KeyPlan& plan, bool causal) {
  Tensor mask = Tensor::zeros({plan.batches, plan.heads, plan.queries, plan.keys}, DType::u8);
  const int64_t offset = plan.keys - plan.queries, blocks = plan.query_blocks();
  parallel_for(plan.lists(), [&](int64_t list, int) {
    const int64_t first = list % blocks * plan.block_q, last = std::min(plan.queries, first + plan.block_q);
    const auto at = static_cast<size_t>(list);
    for (int64_t i = first; i < last; ++i) {
      uint8_t* row = mask.data<uint8_t>() + (list / blocks * plan.queries + i) * plan.keys;
      const int64_t end = causal ? std::clamp<int64_t>(i + offset + 1, 0, plan.keys) : plan.keys;
      for (int64_t r = plan.range_offsets[at]; r < plan.range_offsets[at + 1]; ++r) {
        const auto range = plan.ranges[static_cast<size_t>(r)];
        if (range.begin < end)
          std::memset(row + range.begin, 1,
                      static_cast<size_t>(std::min<int64_t>(range.end, end) - range.begin));
      }
      for (int64_t c = plan.column_offsets[at]; c < plan.column_offsets[at + 1]; ++c)
        if (plan.columns[static_cast<size_t>(c)] < end) row[plan.columns[static_cast<size_t>(c)]] = 1;
    }
  });
  return mask;
}

std::vector<double> plan_density(const KeyPlan& plan) {
  const int64_t offset = plan.keys - plan.queries, blocks = plan.query_blocks();
  std::vector<double> density(static_cast<size_t>(plan.batches * plan.heads), 0.0);
  double causal_pairs = 0;
  for (int64_t i = 0; i < plan.queries; ++i)
    causal_pairs += static_cast<double>(std::clamp<int64_t>(i + offset + 1, 0, plan.keys));
  parallel_for(static_cast<int64_t>(density.size()), [&](int64_t head, int) {
    double pairs = 0;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = block * plan.block_q, last = std::min(plan.queries, first + plan.block_q);
      const int64_t list = head * blocks + block;
      // Keys left of every row's diagonal count once a row; the keys of the diagonal wedge are counted row by
      // row.
      const int64_t common = std::clamp<int64_t>(first + offset + 1, 0, plan.keys);
      pairs += static_cast<double>(count_keys(plan, list, 0, common) * (last - first));
      for (int64_t i = first + 1; i < last; ++i)
        pairs += static_cast<double>(
            count_keys(plan, list, common, std::clamp<int64_t>(i + offset + 1, common, plan.keys)));
    }
    density[static_cast<size_t>(head)] = causal_pairs > 0 ? pairs / causal_pairs : 0.0;
  });
  return density;
}

Tensor plan_recall(const Tensor& q, const Tensor& k, const KeyPlan& plan) {
  // The kept mass of a row is exp(lse of the plan - lse of everything); values do not matter, so one channel
  // will do.
  const Tensor v = k.slice(3, 0, 1);
  const kernels::AttentionParams causal{.visible = kernels::Visibility::causal()};
  const Tensor kept = kernels::plan_forward(q, k, v, plan, causal).lse;
  const Tensor all = kernels::flash_forward(q, k, v, causal).lse;
  Tensor recall = Tensor::zeros({q.dim(0), q.dim(1)});
  for (int64_t b = 0; b < q.dim(0); ++b)
    for (int64_t h = 0; h < q.dim(1); ++h) {
      double sum = 0, rows = 0;
      for (int64_t i = 0; i < q.dim(2); ++i) {
        const double whole = all.at<float>(b, h, i);
        if (!std::isfinite(whole)) continue;
        sum += std::exp(static_cast<double>(kept.at<float>(b, h, i)) - whole);
        rows += 1;
      }
      recall.at<float>(b, h) = static_cast<float>(rows > 0 ? sum / rows : 1.0);
    }
  return recall;
}

std::vector<float> plan_coverage(const KeyPlan& plan, int64_t batch, int64_t head, int64_t size) {
  require(size >= 1 && batch >= 0 && batch < plan.batches && head >= 0 && head < plan.heads,
          "no picture of batch ", batch, ", head ", head, " of a plan of ", plan.batches, " x ", plan.heads);
  std::vector<float> coverage(static_cast<size_t>(size * size), 0.0f);
  const int64_t blocks = plan.query_blocks(), base = (batch * plan.heads + head) * blocks;
  for (int64_t y = 0; y < size && plan.queries > 0; ++y) {
    const int64_t row = (2 * y + 1) * plan.queries / (2 * size);
    const int64_t end = std::clamp<int64_t>(row + plan.keys - plan.queries + 1, 0, plan.keys);
    for (int64_t x = 0; x < size; ++x) {
      const int64_t from = x * plan.keys / size, to = std::max(from + 1, (x + 1) * plan.keys / size);
      const int64_t kept = count_keys(plan, base + row / plan.block_q, from, std::min(to, end));
      coverage[static_cast<size_t>(y * size + x)] =
          static_cast<float>(std::max<int64_t>(kept, 0)) / static_cast<float>(to - from);
    }
  }
  return coverage;
}

std::string plan_picture(const KeyPlan& plan, int64_t batch, int64_t head, int64_t size) {
  static constexpr char kShades[] = " .:-=+*%#";
  const auto coverage = plan_coverage(plan, batch, head, size);
  std::string picture;
  for (int64_t y = 0; y < size; ++y) {
    for (int64_t x = 0; x < size; ++x)
      picture += kShades[std::lround(8.0f * coverage[static_cast<size_t>(y * size + x)])];
    picture += '\n';
  }
  return picture;
}

}  // namespace fovea::sparse
