// SPDX-License-Identifier: Apache-2.0
// Quest: query-aware sparsity (Tang et al. 2024, arXiv 2406.10774). For query q and a page p of keys with
// per-channel bounds lo, hi:
//
//   u[p] = sum_d max(q_d lo[p,d], q_d hi[p,d])  >=  q.k_j   for every key j of p
//
// The R best pages by u are read exactly, the others are not touched. The page of the newest token counts
// among the R and, with keep_last, is always read.
#include "fovea/cache/quest.h"

#include <algorithm>
#include <limits>

#include "fovea/core/catalogue.h"
#include "fovea/kernels/attention.h"
#include "fovea/kernels/pooling.h"
#include "fovea/kernels/rows.h"

namespace fovea::cache {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr float kAlways = std::numeric_limits<float>::infinity();

int64_t pages_of(int64_t length, int64_t page_size) { return length <= 0 ? 0 : 1 + (length - 1) / page_size; }

/// Scores of every row against the pages it sees. Without keep_last the newest page competes too, with bounds
/// over the keys that exist at that step.
Tensor score_pages(const Tensor& q, const Tensor& k, const QuestOptions& options) {
  const Tensor scores = kernels::bound_scores(q, kernels::page_bounds(k, options.page_size));
  if (options.keep_last) return scores;
  const int64_t rows = q.dim(2);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t seen = k.dim(2) - rows + i + 1;
    if (seen <= 0 || seen == k.dim(2) || seen % options.page_size == 0) continue;
    const int64_t page = pages_of(seen, options.page_size) - 1;
    const Tensor tail = k.slice(2, page * options.page_size, seen);
    scores.slice(2, i, i + 1)
        .slice(3, page, page + 1)
        .copy_from(
            kernels::bound_scores(q.slice(2, i, i + 1), kernels::page_bounds(tail, options.page_size)));
  }
  return scores;
}

}  // namespace

int64_t QuestOptions::page_budget(int64_t length) const {
  return std::min(pages_of(length, page_size), std::max(min_pages, token_budget / page_size));
}

Tensor select_pages(const Tensor& scores, int64_t length, const QuestOptions& options) {
  require(scores.rank() == 4 && scores.dtype() == DType::f32 &&
              scores.dim(3) == pages_of(length, options.page_size),
          "quest: scores are ", scores.describe(), ", expected f32 [B,Hq,Tq,",
          pages_of(length, options.page_size), "]");
  const int64_t heads = scores.dim(0) * scores.dim(1), rows = scores.dim(2), pages = scores.dim(3);
  const int64_t budget = options.page_budget(length);
  // Ranks that no score can have mark the pages a row must take and those it does not see yet. A row with
  // fewer pages than the budget takes some of the latter, always after its own, and they are struck out.
  const Tensor ranks = scores.clone();
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t i = 0; i < rows; ++i) {
      float* row = ranks.data<float>() + (h * rows + i) * pages;
      const int64_t seen = pages_of(length - rows + i + 1, options.page_size);
      std::fill(row + seen, row + pages, kNever);
      if (options.keep_last && seen > 0) row[seen - 1] = kAlways;
    }
  const Tensor chosen = kernels::top_k_rows(ranks, budget);
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t i = 0; i < rows; ++i) {
      int32_t* row = chosen.data<int32_t>() + (h * rows + i) * budget;
      const auto seen = static_cast<int32_t>(pages_of(length - rows + i + 1, options.page_size));
      std::fill(std::lower_bound(row, row + budget, seen), row + budget, -1);
    }
  return chosen;
}

QuestResult quest(const Tensor& q, const Tensor& k, const Tensor& v, const QuestOptions& options) {
  const Tensor pages = select_pages(score_pages(q, k, options), k.dim(2), options);
  const auto [o, lse] = kernels::decode(q, kernels::PagedKv::of(k, v, options.page_size), pages);
  return {o, lse, pages};
}

namespace {

struct PageSizeOption {
  int64_t page_size = QuestOptions{}.page_size;
  static constexpr auto fields() {
    return options::list(
        options::field(&PageSizeOption::page_size, "page_size", "tokens per page", options::at_least(1))
            .alias("page"));
  }
};

}  // namespace

void register_quest(Catalogue& catalogue) {
  catalogue.add<QuestOptions>("quest", Room::cache, 110)
      .summary("decode attention over the pages of keys whose bounds promise the largest scores")
      .inputs({"q [B,Hq,Tq,D] float", "k [B,Hkv,Tk,D] float", "v [B,Hkv,Tk,Dv] float"})
      .outputs({"o [B,Hq,Tq,Dv] float", "lse [B,Hq,Tq]",
                "pages [B,Hq,Tq,min(ceil(Tk/page_size),max(min_pages,token_budget/page_size))] i32"})
      .forms({Form::decode, Form::causal, Form::grouped})
      .requires_multiple("Hq", "Hkv")
      .runs([](const Tensors& in, const QuestOptions& options) -> Tensors {
        const auto result = quest(in["q"], in["k"], in["v"], options);
        return {{"o", result.o}, {"lse", result.lse}, {"pages", result.pages}};
      });
  catalogue.add<PageSizeOption>("quest-bounds", Room::cache, 110)
      .summary("per-channel minimum and maximum of the keys of every page")
      .inputs({"k [B,Hkv,Tk,D] float"})
      .outputs({"kmin [B,Hkv,ceil(Tk/page_size),D]", "kmax [B,Hkv,ceil(Tk/page_size),D]"})
      .runs([](const Tensors& in, const PageSizeOption& options) -> Tensors {
        const auto bounds = kernels::page_bounds(in["k"], options.page_size);
        return {{"kmin", bounds.low}, {"kmax", bounds.high}};
      });
  catalogue.add<options::None>("quest-scores", Room::cache, 110)
      .summary("upper bounds of q.k over the keys of every page")
      .inputs({"q [B,Hq,Tq,D] float", "kmin [B,Hkv,P,D]", "kmax [B,Hkv,P,D]"})
      .outputs({"scores [B,Hq,Tq,P]"})
      .forms({Form::decode, Form::grouped})
      .requires_multiple("Hq", "Hkv")
      .runs([](const Tensors& in, const options::None&) -> Tensors {
        return {{"scores", kernels::bound_scores(in["q"], {in["kmin"], in["kmax"]})}};
      });
}

}  // namespace fovea::cache
