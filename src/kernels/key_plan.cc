// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/key_plan.h"

#include <algorithm>

#include "fovea/core/error.h"
#include "fovea/core/thread_pool.h"

namespace fovea::kernels {
namespace {

void check_offsets(const char* name, const std::vector<int64_t>& offsets, int64_t lists, size_t items) {
  require(static_cast<int64_t>(offsets.size()) == lists + 1, "key plan: ", name, " has ", offsets.size(),
          " entries, ", lists + 1, " are needed");
  require(offsets.front() == 0, "key plan: ", name, " must begin with 0, got ", offsets.front());
  for (size_t i = 1; i < offsets.size(); ++i)
    require(offsets[i - 1] <= offsets[i], "key plan: ", name, " must ascend, but ", offsets[i], " follows ",
            offsets[i - 1]);
  require(offsets.back() == static_cast<int64_t>(items), "key plan: ", name, " ends with ", offsets.back(),
          ", the list has ", items, " items");
}

// One list: both parts ascend inside [0, keys), and no column lies in a range.
void check_list(const KeyPlan& plan, size_t list) {
  int64_t free_from = 0;
  auto column = static_cast<size_t>(plan.column_offsets[list]);
  const auto columns_end = static_cast<size_t>(plan.column_offsets[list + 1]);
  auto columns_before = [&](int64_t limit) {
    for (; column < columns_end && plan.columns[column] < limit; ++column) {
      require(plan.columns[column] >= free_from, "key plan: column ", plan.columns[column], " of list ", list,
              " repeats or is out of order");
      free_from = int64_t{plan.columns[column]} + 1;
    }
  };
  for (auto r = static_cast<size_t>(plan.range_offsets[list]);
       r < static_cast<size_t>(plan.range_offsets[list + 1]); ++r) {
    const auto [begin, end] = plan.ranges[r];
    columns_before(begin);
    require(begin >= free_from && begin <= end && end <= plan.keys, "key plan: range ", begin, "..", end,
            " of list ", list, " overlaps, is out of order or leaves 0..", plan.keys);
    free_from = end;
  }
  columns_before(plan.keys);
  require(column == columns_end, "key plan: a column of list ", list, " is outside 0..", plan.keys);
}

// The same for the lists [first, end) as a whole, without a word on what is wrong.
bool lists_hold(const KeyPlan& plan, int64_t first, int64_t end) {
  bool holds = true;
  for (auto list = static_cast<size_t>(first); list < static_cast<size_t>(end); ++list) {
    const int32_t* columns = plan.columns.data() + plan.column_offsets[list];
    const int64_t count = plan.column_offsets[list + 1] - plan.column_offsets[list];
    if (plan.range_offsets[list] < plan.range_offsets[list + 1]) return false;
    if (count == 0) continue;
    holds &= columns[0] >= 0 && columns[count - 1] < plan.keys;
    int descents = 0;
    for (int64_t c = 1; c < count; ++c) descents += columns[c] <= columns[c - 1];
    holds &= descents == 0;
  }
  return holds;
}

}  // namespace

void check(const KeyPlan& plan, int64_t batch, int64_t heads_q, int64_t heads_kv, int64_t queries,
           int64_t keys) {
  require(plan.block_q >= 1, "key plan: block_q = ", plan.block_q, " must be >= 1");
  require(plan.queries == queries && plan.keys == keys, "key plan: made for Tq = ", plan.queries,
          ", Tk = ", plan.keys, ", used with Tq = ", queries, ", Tk = ", keys);
  require(plan.batches == 1 || plan.batches == batch, "key plan: has ", plan.batches,
          " batch rows, need 1 or ", batch);
  require(plan.heads == 1 || plan.heads == heads_kv || plan.heads == heads_q, "key plan: has ", plan.heads,
          " heads, need 1, ", heads_kv, " or ", heads_q);
  check_offsets("range_offsets", plan.range_offsets, plan.lists(), plan.ranges.size());
  check_offsets("column_offsets", plan.column_offsets, plan.lists(), plan.columns.size());
  // Long token lists are many millions of keys: a quick look in parallel, and a second at what it did not
  // like.
  constexpr int64_t kListsTogether = 256;
  const int64_t lists = plan.lists(), parts = (lists + kListsTogether - 1) / kListsTogether;
  parallel_for(parts, [&](int64_t part, int) {
    const int64_t first = part * kListsTogether, end = std::min(lists, first + kListsTogether);
    if (lists_hold(plan, first, end)) return;
    for (int64_t list = first; list < end; ++list) check_list(plan, static_cast<size_t>(list));
  });
}

}  // namespace fovea::kernels
