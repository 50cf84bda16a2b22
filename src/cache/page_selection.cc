// SPDX-License-Identifier: Apache-2.0
#include "fovea/cache/page_selection.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "fovea/cache/policies.h"
#include "fovea/kernels/pooling.h"

namespace fovea::cache {
namespace {

// Keys are read back for their bounds in runs of at most about this many tokens.
constexpr int64_t kTokensPerRun = 1024;

// Rounding to 16 bits must not lift a lower bound nor lower an upper one: then the neighbour is taken.
Half bound_to_half(float x, bool upper) {
  const Half h = to_half(x);
  const float got = to_float(h);
  if (std::isnan(x) || (upper ? got >= x : got <= x)) return h;
  const bool negative = (h.bits & 0x8000u) != 0;
  return {static_cast<uint16_t>(upper != negative ? h.bits + 1 : h.bits - 1)};
}

void put_bound(float x, bool, float& out) { out = x; }
void put_bound(float x, bool upper, Half& out) { out = bound_to_half(x, upper); }
void put_bound(float x, bool, BFloat16& out) { out = to_bfloat16(x); }  // of keys in bf16: exact

// Bounds f32 [1,H,P,D] become (or, where `widen`, also cover) the rows of `to` from `page` on.
template <typename T>
void put_bounds(const Tensor& from, bool upper, bool widen, GrowingRows& to, int64_t page) {
  for (int64_t h = 0; h < from.dim(1); ++h)
    for (int64_t p = 0; p < from.dim(2); ++p) {
      const float* x = &from.at<float>(0, h, p, 0);
      T* out = to.row<T>(h, page + p);
      for (int64_t d = 0; d < from.dim(3); ++d) {
        const bool covered = widen && (upper ? to_float(out[d]) >= x[d] : to_float(out[d]) <= x[d]);
        if (!covered) put_bound(x[d], upper, out[d]);
      }
    }
}

void put_bounds(DType type, const Tensor& from, bool upper, bool widen, GrowingRows& to, int64_t page) {
  if (type == DType::f32) return put_bounds<float>(from, upper, widen, to, page);
  if (type == DType::f16) return put_bounds<Half>(from, upper, widen, to, page);
  put_bounds<BFloat16>(from, upper, widen, to, page);
}

}  // namespace

std::unique_ptr<PageSelection> PageSelection::make(const PolicySpec& spec, const CacheShape& shape,
                                                   const Storage& storage) {
  const std::string& name = policy_of(PolicyKind::selection, spec.name).name;
  if (name != "quest") {
    options::from_pairs<options::None>(spec.options, name);
    return nullptr;
  }
  const auto options = options::from_pairs<QuestSelectionOptions>(spec.options, name);
  if (shape.layer < options.dense_layers) return nullptr;
  return std::make_unique<PageSelection>(options, storage);
}

PageSelection::PageSelection(const QuestOptions& options, const Storage& storage)
    : options_(options),
      type_(storage.bounds_type()),
      low_(storage.heads(), storage.dim() * size_of(type_)),
      high_(storage.heads(), storage.dim() * size_of(type_)) {}

void PageSelection::written(const Storage& storage, int64_t slot, int64_t count) {
  const int64_t size = options_.page_size;
  // New slots widen the bounds of their page; a page with an overwritten slot is bounded afresh.
  int64_t first = slot, end = slot + count;
  if (slot < slots_) {
    first = slot / size * size;
    end = std::min((end + size - 1) / size * size, storage.slots());
  }
  slots_ = std::max(slots_, end);
  low_.resize((slots_ + size - 1) / size);
  high_.resize(low_.rows());
  const Tensor scratch =
      Tensor::empty({1, storage.heads(), std::min(end - first, kTokensPerRun), storage.dim()});
  while (first < end) {
    const int64_t page = first / size;
    const bool fresh = first % size == 0;
    // Whole pages at a time, or what is left of one page.
    const int64_t whole = fresh && size <= kTokensPerRun ? kTokensPerRun / size : 1;
    const int64_t run = std::min({end, (page + whole) * size, first + kTokensPerRun}) - first;
    const Tensor keys = scratch.slice(2, 0, run);
    storage.read(first, run, keys.select(0, 0), {});
    const auto bounds = kernels::page_bounds(keys, fresh ? size : run);
    put_bounds(type_, bounds.low, false, !fresh, low_, page);
    put_bounds(type_, bounds.high, true, !fresh, high_, page);
    first += run;
  }
}

void PageSelection::truncated(const Storage& storage) {
  slots_ = storage.slots();
  low_.resize((slots_ + options_.page_size - 1) / options_.page_size);
  high_.resize(low_.rows());
  const int64_t in_page = slots_ % options_.page_size;
  if (in_page > 0) written(storage, slots_ - in_page, in_page);
}

Tensor PageSelection::select(const Tensor& q, int64_t newest) {
  const int64_t pages = low_.rows();
  bytes_read_ = 0;
  if (options_.page_budget(slots_) >= pages) return {};
  bytes_read_ = bytes();
  const auto view = [&](const GrowingRows& rows) { return rows.view(type_, 0, pages).unsqueeze(0); };
  const Tensor scores = kernels::bound_scores(q, {view(low_), view(high_)});
  const int64_t page_of_newest = newest / options_.page_size;
  if (!options_.keep_last || page_of_newest == pages - 1) return select_pages(scores, slots_, options_);
  // In a ring the newest token may be anywhere: its page wins by an infinite score.
  QuestOptions by_score = options_;
  by_score.keep_last = false;
  for (int64_t h = 0; h < scores.dim(1); ++h)
    scores.at<float>(0, h, 0, page_of_newest) = std::numeric_limits<float>::infinity();
  return select_pages(scores, slots_, by_score);
}

void PageSelection::save(ByteWriter& out) const {
  low_.save(out);
  high_.save(out);
}

void PageSelection::load(ByteReader& in, const Storage& storage) {
  slots_ = storage.slots();
  const int64_t pages = (slots_ + options_.page_size - 1) / options_.page_size;
  low_.load(in, pages);
  high_.load(in, pages);
}

}  // namespace fovea::cache
