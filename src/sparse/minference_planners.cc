// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "fovea/sparse/minference.h"

// How recipes reach the shapes of MInference. Budgets follow the prompt where the recipe leaves them open.

namespace fovea::sparse {
namespace {

/// Budgets of a recipe follow the prompt: 0 asks for a share of its length, so that one recipe serves 1k and
/// 128k tokens.
struct RecipeBudgets {
  static int64_t vertical(int64_t wanted, int64_t keys) {
    return wanted > 0 ? wanted : std::max<int64_t>(64, keys / 16);
  }
  static int64_t slash(int64_t wanted, int64_t keys) {
    return wanted > 0 ? wanted : std::max<int64_t>(128, keys / 32);
  }
};

struct VerticalSlashRecipe {
  int64_t vertical = 0, slash = 0, last_q = 64, keep_sink = 30, keep_local = 100, block = 64;

  static constexpr auto fields() {
    using O = VerticalSlashRecipe;
    return options::list(
        options::field(&O::vertical, "vertical", "columns kept; 0: a sixteenth of the prompt",
                       options::at_least(0)),
        options::field(&O::slash, "slash", "diagonals kept; 0: a thirty-second of the prompt",
                       options::at_least(0)),
        options::field(&O::last_q, "last_q", "rows used for the estimate", options::at_least(1)),
        options::field(&O::keep_sink, "keep_sink", "first columns forced", options::at_least(0)),
        options::field(&O::keep_local, "keep_local", "first diagonals forced", options::at_least(1)),
        options::field(&O::block, "block", "query block of the widening", options::at_least(1)));
  }
};

class AShapePlanner : public Planner {
 public:
  explicit AShapePlanner(const AShapeOptions& options) : options_(options) {}

  KeyPlan plan(const Tensor& q, const Tensor& k) const override {
    return plan_a_shape(options_, q.dim(2), k.dim(2));
  }
  // One dense call with a window is faster than a plan whose rows all differ.
  kernels::AttentionResult attend(const Tensor& q, const Tensor& k, const Tensor& v) const override {
    return kernels::flash_forward(q, k, v, {.visible = options_.visibility()});
  }

 private:
  AShapeOptions options_;
};

class VerticalSlashPlanner : public Planner {
 public:
  explicit VerticalSlashPlanner(const VerticalSlashRecipe& recipe) : recipe_(recipe) {}

  KeyPlan plan(const Tensor& q, const Tensor& k) const override {
    const int64_t keys = k.dim(2);
    const VerticalSlashOptions budgets{RecipeBudgets::vertical(recipe_.vertical, keys),
                                       RecipeBudgets::slash(recipe_.slash, keys),
                                       recipe_.last_q,
                                       recipe_.keep_sink,
                                       recipe_.keep_local,
                                       recipe_.block};
    return plan_vertical_slash(select_vertical_slash(q, k, budgets), recipe_.block, q.dim(2), keys);
  }

 private:
  VerticalSlashRecipe recipe_;
};

class BlockTopkPlanner : public Planner {
 public:
  explicit BlockTopkPlanner(const BlockTopkOptions& options) : options_(options) {}

  KeyPlan plan(const Tensor& q, const Tensor& k) const override {
    return plan_from_blocks(select_blocks(q, k, options_), options_.block, options_.block, q.dim(2),
                            k.dim(2));
  }

 private:
  BlockTopkOptions options_;
};

template <typename PlannerType, typename Options>
PlannerEntry entry(const char* name, const char* summary) {
  return {name,
          92,
          summary,
          options::describe<Options>(),
          false,
          [name](const options::Pairs& pairs, std::shared_ptr<const Planner>) -> std::unique_ptr<Planner> {
            return std::make_unique<PlannerType>(options::from_pairs<Options>(pairs, name));
          }};
}

}  // namespace

void add_minference_planners(std::vector<PlannerEntry>& entries) {
  entries.push_back(entry<VerticalSlashPlanner, VerticalSlashRecipe>(
      "minference", "columns and diagonals found from the last rows"));
  entries.push_back(entry<AShapePlanner, AShapeOptions>("a-shape", "sinks and a sliding window"));
  entries.push_back(
      entry<BlockTopkPlanner, BlockTopkOptions>("block-topk", "key blocks by the scores of block means"));
}

}  // namespace fovea::sparse
