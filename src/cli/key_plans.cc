// SPDX-License-Identifier: Apache-2.0
#include "cli/key_plans.h"

#include <algorithm>
#include <random>
#include <set>

namespace fovea::cli {
namespace {

using kernels::KeyPlan;

KeyPlan empty_plan(int64_t length, int64_t block) {
  KeyPlan plan;
  plan.block_q = block;
  plan.queries = plan.keys = length;
  plan.range_offsets = plan.column_offsets = {0};
  return plan;
}

void close_list(KeyPlan& plan) {
  plan.range_offsets.push_back(static_cast<int64_t>(plan.ranges.size()));
  plan.column_offsets.push_back(static_cast<int64_t>(plan.columns.size()));
}

void add_range(KeyPlan& plan, int64_t begin, int64_t end) {
  plan.ranges.push_back({static_cast<int32_t>(begin), static_cast<int32_t>(end)});
}

// Each of 0 .. count-1 with the given probability, ascending.
template <typename Visit>
void for_random(int64_t count, double probability, std::mt19937_64& random, Visit visit) {
  if (probability <= 0) return;
  std::geometric_distribution<int64_t> gap(std::min(probability, 1.0 - 1e-9));
  for (int64_t i = gap(random); i < count; i += 1 + gap(random)) visit(i);
}

// The share of the `others` keys that brings a block of rows to the density, its own block being given.
double share_of_others(double density, int64_t others, int64_t block) {
  if (others == 0) return 0;
  const double visible = static_cast<double>(others) + 0.5 * static_cast<double>(block);
  return std::clamp((density * visible - 0.5 * static_cast<double>(block)) / static_cast<double>(others), 0.0,
                    1.0);
}

}  // namespace

KeyPlan random_block_plan(int64_t length, int64_t block, double density, uint64_t seed) {
  std::mt19937_64 random(seed);
  KeyPlan plan = empty_plan(length, block);
  for (int64_t begin = 0; begin < length; begin += block) {
    for_random(begin / block, share_of_others(density, begin, block), random,
               [&](int64_t j) { add_range(plan, j * block, (j + 1) * block); });
    add_range(plan, begin, std::min(begin + block, length));
    close_list(plan);
  }
  return plan;
}

KeyPlan random_stripe_plan(int64_t length, int64_t block, double density, uint64_t seed) {
  std::mt19937_64 random(seed);
  KeyPlan plan = empty_plan(length, block);
  for (int64_t begin = 0; begin < length; begin += block) {
    for_random(begin, share_of_others(density, begin, block), random,
               [&](int64_t j) { plan.columns.push_back(static_cast<int32_t>(j)); });
    add_range(plan, begin, std::min(begin + block, length));
    close_list(plan);
  }
  return plan;
}

KeyPlan random_token_plan(int64_t length, double density, double renewed, uint64_t seed) {
  std::mt19937_64 random(seed);
  KeyPlan plan = empty_plan(length, 1);
  std::set<int32_t> held;
  for (int64_t row = 0; row < length; ++row) {
    std::vector<int32_t> dropped;
    const std::vector<int32_t> keys(held.begin(), held.end());
    for_random(static_cast<int64_t>(keys.size()), renewed, random,
               [&](int64_t i) { dropped.push_back(keys[static_cast<size_t>(i)]); });
    for (int32_t key : dropped) held.erase(key);
    const auto wanted = static_cast<size_t>(std::max(1.0, density * static_cast<double>(row + 1)));
    held.insert(static_cast<int32_t>(row));
    std::uniform_int_distribution<int32_t> any(0, static_cast<int32_t>(row));
    while (held.size() < wanted) held.insert(any(random));
    plan.columns.insert(plan.columns.end(), held.begin(), held.end());
    close_list(plan);
  }
  return plan;
}

double causal_density(const KeyPlan& plan) {
  double kept = 0;
  for (int64_t block = 0; block < plan.query_blocks(); ++block) {
    const auto i = static_cast<size_t>(block);
    const int64_t begin = block * plan.block_q, end = std::min(begin + plan.block_q, plan.queries);
    const auto add = [&](int64_t key) {
      kept += static_cast<double>(std::clamp(end - key, int64_t{0}, end - begin));
    };
    for (int64_t r = plan.range_offsets[i]; r < plan.range_offsets[i + 1]; ++r)
      for (int64_t key = plan.ranges[static_cast<size_t>(r)].begin;
           key < plan.ranges[static_cast<size_t>(r)].end; ++key)
        add(key);
    for (int64_t c = plan.column_offsets[i]; c < plan.column_offsets[i + 1]; ++c)
      add(plan.columns[static_cast<size_t>(c)]);
  }
  const auto rows = static_cast<double>(plan.queries);
  return kept / (rows * (rows + 1) / 2);
}

}  // namespace fovea::cli
