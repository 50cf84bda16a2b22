// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "fovea/core/error.h"

namespace fovea::model {
namespace {

/// Each recent token once, however often it occurs.
void penalise(std::span<const int32_t> recent, float penalty, std::vector<float>& logits) {
  std::vector<int32_t> ids(recent.begin(), recent.end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  for (const int32_t id : ids) {
    if (id < 0 || static_cast<size_t>(id) >= logits.size()) continue;
    float& logit = logits[static_cast<size_t>(id)];
    logit = logit > 0 ? logit / penalty : logit * penalty;
  }
}

}  // namespace

Sampler::Sampler(const SamplerOptions& options)
    : options_(options), rng_(static_cast<uint64_t>(options.seed)) {
  options::validate(options_, "sampler");
}

int32_t Sampler::sample(const Tensor& logits, std::span<const int32_t> history) {
  require(logits.rank() == 1 && logits.dtype() == DType::f32 && logits.dim(0) > 0 && logits.is_contiguous(),
          "sampler: logits are ", logits.describe(), ", expected contiguous f32[V]");
  const size_t count = static_cast<size_t>(logits.dim(0));
  logits_.assign(logits.data<float>(), logits.data<float>() + count);
  for (float& logit : logits_)
    if (std::isnan(logit)) logit = -INFINITY;
  const size_t recent = std::min(history.size(), static_cast<size_t>(options_.repetition_window));
  if (options_.repetition_penalty != 1)
    penalise(history.last(recent), static_cast<float>(options_.repetition_penalty), logits_);
  const auto best = std::max_element(logits_.begin(), logits_.end());
  require(*best > -INFINITY && *best < INFINITY, "sampler: the largest logit is not a finite number");
  if (options_.temperature == 0) return static_cast<int32_t>(best - logits_.begin());

  const auto likelihood = [&](int32_t id) {  // relative to the best
    return std::exp((static_cast<double>(logits_[static_cast<size_t>(id)]) - static_cast<double>(*best)) /
                    options_.temperature);
  };
  order_.clear();
  for (size_t id = 0; id < count; ++id)
    if (logits_[id] > -INFINITY && likelihood(static_cast<int32_t>(id)) >= options_.min_p)
      order_.push_back(static_cast<int32_t>(id));
  size_t kept = order_.size();
  if (options_.top_k > 0) kept = std::min(kept, static_cast<size_t>(options_.top_k));
  if (kept < order_.size() || options_.top_p < 1)
    std::partial_sort(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(kept), order_.end(),
                      [&](int32_t a, int32_t b) {
                        const float x = logits_[static_cast<size_t>(a)], y = logits_[static_cast<size_t>(b)];
                        return x > y || (x == y && a < b);
                      });
  order_.resize(kept);

  probabilities_.resize(kept);
  std::transform(order_.begin(), order_.end(), probabilities_.begin(), likelihood);
  double mass = std::accumulate(probabilities_.begin(), probabilities_.end(), 0.0);
  if (options_.top_p < 1) {
    const double wanted = options_.top_p * mass;
    size_t nucleus = 0;
    for (mass = 0; nucleus < kept && mass < wanted; ++nucleus) mass += probabilities_[nucleus];
    probabilities_.resize(std::max<size_t>(nucleus, 1));
  }
  double target = static_cast<double>(rng_.next_uniform()) * mass;
  for (size_t i = 0; i < probabilities_.size(); ++i) {
    target -= probabilities_[i];
    if (target < 0) return order_[i];
  }
  return order_[probabilities_.size() - 1];
}

}  // namespace fovea::model
