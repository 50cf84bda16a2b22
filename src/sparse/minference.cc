// SPDX-License-Identifier: Apache-2.0
#include "fovea/sparse/minference.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "fovea/core/catalogue.h"
#include "fovea/kernels/pooling.h"
#include "fovea/kernels/rows.h"

// MInference. With P the exact causal probabilities of the last rows, p the absolute position of a row:
//
//   a[j] = sum_r P[r,j]          c[d] = sum_r P[r, p(r)-d]
//   V = the columns with the largest a,  S = the diagonals with the largest c  (sinks and the newest
//   distances forced) block of rows [f,e) sees  V + union over d in S of [f-d, e-d)
//
// and for block top-k  g[I,J] = scale mean(q_I) . mean(k_J).

namespace fovea::sparse {
namespace {

using kernels::AttentionParams;
using kernels::AttentionResult;
using kernels::Visibility;

constexpr float kForced = std::numeric_limits<float>::infinity();

// The largest `count` of scores [B,H,N] after forcing the first `forced` of each row; ascending i32
// [B,H,count].
Tensor select_best(const Tensor& scores, int64_t forced, int64_t count) {
  const int64_t width = scores.dim(2);
  for (int64_t row = 0; row < scores.dim(0) * scores.dim(1); ++row)
    std::fill_n(scores.data<float>() + row * width, std::min(forced, width), kForced);
  return kernels::top_k_rows(scores, std::min(width, std::max(count, forced)));
}

// Merges ascending slashes of one head into the disjoint ascending ranges of a block of rows [first, last).
void append_slash_ranges(KeyPlan& plan, const int32_t* slashes, int64_t count, int64_t first, int64_t last) {
  const auto list_begin = plan.range_offsets.back();
  for (int64_t s = count - 1; s >= 0; --s) {  // the largest distance lies leftmost
    const int64_t begin = std::max<int64_t>(0, first - slashes[s]);
    const int64_t end = std::min<int64_t>(plan.keys, last - slashes[s]);
    if (begin >= end) continue;
    const bool touches =
        static_cast<int64_t>(plan.ranges.size()) > list_begin && plan.ranges.back().end >= begin;
    if (touches)
      plan.ranges.back().end = std::max(plan.ranges.back().end, static_cast<int32_t>(end));
    else
      plan.ranges.push_back({static_cast<int32_t>(begin), static_cast<int32_t>(end)});
  }
}

// The columns that no range of the open list covers and that some row of the block can see.
void append_free_columns(KeyPlan& plan, const int32_t* columns, int64_t count, int64_t last) {
  auto range = plan.ranges.begin() + plan.range_offsets.back();
  for (int64_t c = 0; c < count && columns[c] < last; ++c) {
    while (range != plan.ranges.end() && range->end <= columns[c]) ++range;
    if (range == plan.ranges.end() || columns[c] < range->begin) plan.columns.push_back(columns[c]);
  }
}

Tensor one_head(const Tensor& x, int64_t head) { return x.slice(1, head, head + 1); }

// How one head attends: its shape with budgets p1, p2 in place of the shape's own.
AttentionResult attend_head(const Tensor& q, const Tensor& k, const Tensor& v, HeadPattern pattern,
                            int64_t p1, int64_t p2, const MinferenceOptions& options) {
  AttentionParams params{.visible = Visibility::causal()};
  switch (pattern) {
    case HeadPattern::a_shape:
      params.visible = AShapeOptions{p1, p2}.visibility();
      return kernels::flash_forward(q, k, v, params);
    case HeadPattern::vertical_slash: {
      VerticalSlashOptions shape = options.vertical_slash();
      shape.vertical = p1;
      shape.slash = p2;
      const auto selected = select_vertical_slash(q, k, shape);
      return kernels::plan_forward(q, k, v, plan_vertical_slash(selected, shape.block, q.dim(2), k.dim(2)),
                                   params);
    }
    case HeadPattern::block_topk: {
      const Tensor blocks = select_blocks(q, k, {p1, options.block, true});
      return kernels::plan_forward(
          q, k, v, plan_from_blocks(blocks, options.block, options.block, q.dim(2), k.dim(2)), params);
    }
  }
  throw Error("minference: head pattern code " + std::to_string(static_cast<int32_t>(pattern)) +
              " is not 0, 1 or 2");
}

// A head's (code, p1, p2), checked.
struct HeadChoice {
  HeadPattern pattern;
  int64_t p1, p2;

  HeadChoice(std::string_view owner, int32_t code, int32_t first, int32_t second)
      : pattern(static_cast<HeadPattern>(code)), p1(first), p2(second) {
    require(code >= 0 && code <= 2, owner, ": pattern code ", code,
            " is not 0 (a-shape), 1 (vertical-slash) or 2 (block-topk)");
    const bool fits = pattern == HeadPattern::a_shape      ? p1 >= 0 && p2 >= 1
                      : pattern == HeadPattern::block_topk ? p1 >= 1
                                                           : p1 >= 0 && p2 >= 0;
    require(fits, owner, ": budgets ", p1, " and ", p2, " are outside the range of pattern code ", code);
  }
};

HeadChoice default_choice(const MinferenceOptions& options) {
  if (options.pattern == "a-shape")
    return {"minference", 0, static_cast<int32_t>(options.n_init), static_cast<int32_t>(options.n_local)};
  if (options.pattern == "block-topk") return {"minference", 2, static_cast<int32_t>(options.topk), 0};
  return {"minference", 1, static_cast<int32_t>(options.vertical), static_cast<int32_t>(options.slash)};
}

double absolute_difference(const Tensor& a_any, const Tensor& b_any) {
  const Tensor a = a_any.to(DType::f32).contiguous(), b = b_any.to(DType::f32).contiguous();
  double sum = 0;
  for (int64_t i = 0; i < a.size(); ++i)
    sum += std::abs(static_cast<double>(a.data<float>()[i]) - b.data<float>()[i]);
  return sum;
}

}  // namespace

KeyPlan plan_a_shape(const AShapeOptions& options, int64_t queries, int64_t keys) {
  const int64_t offset = keys - queries;
  KeyPlan plan;
  plan.block_q = 1;
  plan.queries = queries;
  plan.keys = keys;
  plan.range_offsets.push_back(0);
  plan.column_offsets.assign(static_cast<size_t>(queries) + 1, 0);
  for (int64_t i = 0; i < queries; ++i) {
    const int64_t end = std::clamp<int64_t>(i + offset + 1, 0, keys);
    const int64_t window = std::max<int64_t>(0, end - options.n_local), sinks = std::min(options.n_init, end);
    if (window > sinks) {
      if (sinks > 0) plan.ranges.push_back({0, static_cast<int32_t>(sinks)});
      plan.ranges.push_back({static_cast<int32_t>(window), static_cast<int32_t>(end)});
    } else if (end > 0) {
      plan.ranges.push_back({0, static_cast<int32_t>(end)});
    }
    plan.range_offsets.push_back(static_cast<int64_t>(plan.ranges.size()));
  }
  return plan;
}

VerticalSlash select_vertical_slash(const Tensor& q, const Tensor& k, const VerticalSlashOptions& options) {
  const auto sums = kernels::strip_sums(q, k, std::min(options.last_q, q.dim(2)));
  return {select_best(sums.columns, options.keep_sink, options.vertical),
          select_best(sums.diagonals, options.keep_local, options.slash)};
}

KeyPlan plan_vertical_slash(const VerticalSlash& selected, int64_t block, int64_t queries, int64_t keys) {
  KeyPlan plan;
  plan.block_q = block;
  plan.batches = selected.columns.dim(0);
  plan.heads = selected.columns.dim(1);
  plan.queries = queries;
  plan.keys = keys;
  plan.range_offsets.push_back(0);
  plan.column_offsets.push_back(0);
  const int64_t vertical = selected.columns.dim(2), slash = selected.slashes.dim(2), offset = keys - queries;
  for (int64_t head = 0; head < plan.batches * plan.heads; ++head) {
    const int32_t* columns = selected.columns.data<int32_t>() + head * vertical;
    const int32_t* slashes = selected.slashes.data<int32_t>() + head * slash;
    for (int64_t block_index = 0; block_index < plan.query_blocks(); ++block_index) {
      const int64_t first = block_index * block + offset,
                    last = std::min((block_index + 1) * block, queries) + offset;
      append_slash_ranges(plan, slashes, slash, first, last);
      append_free_columns(plan, columns, vertical, last);
      plan.range_offsets.push_back(static_cast<int64_t>(plan.ranges.size()));
      plan.column_offsets.push_back(static_cast<int64_t>(plan.columns.size()));
    }
  }
  return plan;
}

Tensor select_blocks(const Tensor& q, const Tensor& k, const BlockTopkOptions& options) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(q.dim(3)));
  const Tensor scores = kernels::pair_scores(kernels::block_means(q, options.block),
                                             kernels::block_means(k, options.block), scale);
  const int64_t query_blocks = scores.dim(2), key_blocks = scores.dim(3), offset = k.dim(2) - q.dim(2);
  // Block J may be read when its first key is visible to the last row of the query block.
  auto allowed = [&](int64_t block) {
    const int64_t last_row = std::min((block + 1) * options.block, q.dim(2)) - 1 + offset;
    return !options.causal ? key_blocks
           : last_row < 0  ? 0
                           : std::min(key_blocks, last_row / options.block + 1);
  };
  const int64_t rows = scores.dim(0) * scores.dim(1) * query_blocks;
  for (int64_t row = 0; row < rows; ++row) {
    float* score = scores.data<float>() + row * key_blocks;
    std::fill(score + allowed(row % query_blocks), score + key_blocks,
              -std::numeric_limits<float>::infinity());
  }
  const Tensor best = kernels::top_k_rows(scores, options.topk);
  const int64_t width = best.dim(3);
  Tensor blocks = Tensor::zeros(scores.shape(), DType::u8);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t r = 0; r < width; ++r) {
      const int32_t block = best.data<int32_t>()[row * width + r];
      if (block < allowed(row % query_blocks)) blocks.data<uint8_t>()[row * key_blocks + block] = 1;
    }
  return blocks;
}

AttentionResult minference(const Tensor& q, const Tensor& k, const Tensor& v,
                           const MinferenceOptions& options, const Tensor& head_pattern,
                           const Tensor& head_budget) {
  require(head_pattern.defined() == head_budget.defined(),
          "minference: head_pattern and head_budget go together, only ",
          head_pattern.defined() ? "head_pattern" : "head_budget", " was given");
  if (!head_pattern.defined()) {
    const HeadChoice choice = default_choice(options);
    return attend_head(q, k, v, choice.pattern, choice.p1, choice.p2, options);
  }
  AttentionResult result{Tensor::empty({q.dim(0), q.dim(1), q.dim(2), v.dim(3)}, v.dtype()),
                         Tensor::empty({q.dim(0), q.dim(1), q.dim(2)})};
  const int64_t group = q.dim(1) / k.dim(1);
  for (int64_t head = 0; head < q.dim(1); ++head) {
    const HeadChoice choice("minference", head_pattern.at<int32_t>(head), head_budget.at<int32_t>(head, 0),
                            head_budget.at<int32_t>(head, 1));
    const auto part = attend_head(one_head(q, head), one_head(k, head / group), one_head(v, head / group),
                                  choice.pattern, choice.p1, choice.p2, options);
    one_head(result.o, head).copy_from(part.o);
    one_head(result.lse, head).copy_from(part.lse);
  }
  return result;
}

MinferenceSearch minference_search(const Tensor& any_q, const Tensor& any_k, const Tensor& any_v,
                                   const Tensor& candidates, const VerticalSlashOptions& options) {
  // What separates good candidates may be finer than sixteen bits.
  const Tensor q = any_q.to(DType::f32), k = any_k.to(DType::f32), v = any_v.to(DType::f32);
  MinferenceOptions shape;
  shape.last_q = options.last_q;
  shape.keep_sink = options.keep_sink;
  shape.keep_local = options.keep_local;
  shape.block = options.block;
  const int64_t heads = q.dim(1), group = heads / k.dim(1), count = candidates.dim(0);
  require(count >= 1, "minference-search: candidates is empty");
  MinferenceSearch found{Tensor::empty({heads}, DType::i32), Tensor::empty({heads, 2}, DType::i32),
                         Tensor::empty({heads, count})};
  const Tensor dense = kernels::flash_forward(q, k, v, {.visible = Visibility::causal()}).o;
  for (int64_t head = 0; head < heads; ++head) {
    int64_t best = 0;
    for (int64_t c = 0; c < count; ++c) {
      const HeadChoice choice("minference-search", candidates.at<int32_t>(c, 0), candidates.at<int32_t>(c, 1),
                              candidates.at<int32_t>(c, 2));
      const Tensor sparse =
          attend_head(one_head(q, head), one_head(k, head / group), one_head(v, head / group), choice.pattern,
                      choice.p1, choice.p2, shape)
              .o;
      float& error = found.error.at<float>(head, c);
      error = static_cast<float>(absolute_difference(sparse, one_head(dense, head)));
      if (error < found.error.at<float>(head, best)) best = c;
    }
    found.head_pattern.at<int32_t>(head) = candidates.at<int32_t>(best, 0);
    found.head_budget.at<int32_t>(head, 0) = candidates.at<int32_t>(best, 1);
    found.head_budget.at<int32_t>(head, 1) = candidates.at<int32_t>(best, 2);
  }
  return found;
}

namespace {

struct SearchOptions {
  int64_t last_q = 64, keep_sink = 30, keep_local = 100, block = 64;

  static constexpr auto fields() {
    using O = SearchOptions;
    return options::list(
        options::field(&O::last_q, "last_q", "rows used for the estimate", options::at_least(1)),
        options::field(&O::keep_sink, "keep_sink", "first columns forced", options::at_least(0)),
        options::field(&O::keep_local, "keep_local", "first diagonals forced", options::at_least(1)),
        options::field(&O::block, "block", "query block", options::at_least(1)));
  }
};

constexpr const char* kQ = "q [B,Hq,Tq,D] float";
constexpr const char* kK = "k [B,Hkv,Tk,D] float";
constexpr const char* kV = "v [B,Hkv,Tk,Dv] float";
constexpr const char* kO = "o [B,Hq,Tq,Dv] float";
constexpr const char* kLse = "lse [B,Hq,Tq]";

}  // namespace

void register_minference(Catalogue& catalogue) {
  catalogue.add<AShapeOptions>("plan-a-shape", Room::sparse, 92)
      .summary("mask of sinks and a sliding window")
      .inputs({kQ, kK})
      .outputs({"mask [B,Hq,Tq,Tk] u8"})
      .forms({Form::plan, Form::causal, Form::grouped})
      .requires_multiple("Hq", "Hkv")
      .runs([](const Tensors& in, const AShapeOptions& options) -> Tensors {
        const Tensor q = in["q"];
        const Tensor shared = plan_mask(plan_a_shape(options, q.dim(2), in["k"].dim(2)));
        return {{"mask", shared.expand({q.dim(0), q.dim(1), q.dim(2), in["k"].dim(2)}).clone()}};
      });
  catalogue.add<VerticalSlashOptions>("plan-vertical-slash", Room::sparse, 92)
      .summary("the columns and diagonals that hold most attention of the last rows")
      .inputs({kQ, kK})
      .outputs({"mask [B,Hq,Tq,Tk] u8", "columns [B,Hq,min(Tk,max(vertical,keep_sink))] i32",
                "slashes [B,Hq,min(Tk,max(slash,keep_local))] i32"})
      .forms({Form::plan, Form::causal, Form::grouped})
      .requires_multiple("Hq", "Hkv")
      .runs([](const Tensors& in, const VerticalSlashOptions& options) -> Tensors {
        const auto selected = select_vertical_slash(in["q"], in["k"], options);
        const auto plan = plan_vertical_slash(selected, options.block, in["q"].dim(2), in["k"].dim(2));
        return {{"mask", plan_mask(plan)}, {"columns", selected.columns}, {"slashes", selected.slashes}};
      });
  catalogue.add<BlockTopkOptions>("plan-block-topk", Room::sparse, 92)
      .summary("the key blocks whose mean key fits the mean query of a block best")
      .inputs({kQ, kK})
      .outputs({"blocks [B,Hq,ceil(Tq/block),ceil(Tk/block)] u8"})
      .forms({Form::plan, Form::causal, Form::grouped})
      .requires_multiple("Hq", "Hkv")
      .runs([](const Tensors& in, const BlockTopkOptions& options) -> Tensors {
        return {{"blocks", select_blocks(in["q"], in["k"], options)}};
      });
  catalogue.add<MinferenceOptions>("minference", Room::sparse, 92)
      .summary("causal attention of heads that are sinks and window, columns and diagonals, or key blocks")
      .inputs({kQ, kK, kV, "head_pattern? [Hq] i32", "head_budget? [Hq,2] i32"})
      .outputs({kO, kLse})
      .forms({Form::causal, Form::grouped})
      .requires_multiple("Hq", "Hkv")
      .runs([](const Tensors& in, const MinferenceOptions& options) -> Tensors {
        const auto result =
            minference(in["q"], in["k"], in["v"], options, in["head_pattern"], in["head_budget"]);
        return {{"o", result.o}, {"lse", result.lse}};
      });
  catalogue.add<SearchOptions>("minference-search", Room::sparse, 92)
      .summary("the candidate shape with the smallest output error, for every head")
      .inputs({kQ, kK, kV, "candidates [C,3] i32"})
      .outputs({"head_pattern [Hq] i32", "head_budget [Hq,2] i32", "error [Hq,C]"})
      .forms({Form::causal, Form::grouped})
      .requires_multiple("Hq", "Hkv")
      .runs([](const Tensors& in, const SearchOptions& options) -> Tensors {
        const auto found = minference_search(in["q"], in["k"], in["v"], in["candidates"],
                                             {.last_q = options.last_q,
                                              .keep_sink = options.keep_sink,
                                              .keep_local = options.keep_local,
                                              .block = options.block});
        return {
            {"head_pattern", found.head_pattern}, {"head_budget", found.head_budget}, {"error", found.error}};
      });
}

}  // namespace fovea::sparse
