// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fovea/core/options.h"
#include "fovea/core/tensor.h"

/// Quest: reads only the pages of keys whose bounds promise the largest scores. Tang et al. 2024, arXiv
/// 2406.10774.
namespace fovea::cache {

struct QuestOptions {
  int64_t page_size = 16;
  int64_t token_budget = 1024;
  int64_t min_pages = 3;
  bool keep_last = true;

  static constexpr auto fields() {
    return options::list(
        options::field(&QuestOptions::page_size, "page_size", "tokens per page", options::at_least(1))
            .alias("page"),
        options::field(&QuestOptions::token_budget, "token_budget", "tokens read per head and step",
                       options::at_least(1))
            .alias("budget"),
        options::field(&QuestOptions::min_pages, "min_pages", "floor of the page budget",
                       options::at_least(1)),
        options::field(&QuestOptions::keep_last, "keep_last", "always read the page of the newest token"));
  }

  /// R for a sequence of `length` tokens: min(ceil(length/page_size), max(min_pages, budget/page_size)).
  int64_t page_budget(int64_t length) const;
};

/// The pages that each row reads: scores [B,Hq,Tq,P] with P = ceil(length/page_size); row i sees the first
/// length - Tq + i + 1 tokens and its own page budget follows from that. Higher scores first, equal scores:
/// the lower page. -> i32 [B,Hq,Tq,page_budget(length)], ascending, -1 where unused (at the end). Scores of
/// pages that a row does not see are ignored.
Tensor select_pages(const Tensor& scores, int64_t length, const QuestOptions& options);

struct QuestResult {
  Tensor o, lse;  ///< [B,Hq,Tq,Dv] in the type of v, [B,Hq,Tq]
  Tensor pages;   ///< i32 [B,Hq,Tq,page_budget(Tk)], ascending, -1 where unused
};

/// q [B,Hq,Tq,D], k [B,Hkv,Tk,D], v [B,Hkv,Tk,Dv] of one type (f32, f16 or bf16); row i is the decode step
/// that sees keys 0 .. Tk-Tq+i and page bounds over those keys alone.
QuestResult quest(const Tensor& q, const Tensor& k, const Tensor& v, const QuestOptions& options = {});

}  // namespace fovea::cache
