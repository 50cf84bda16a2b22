// SPDX-License-Identifier: Apache-2.0
#include "cli/kernel_cases.h"

#include "cli/key_plans.h"
#include "cli/table.h"
#include "fovea/cache/storage.h"
#include "fovea/core/rng.h"
#include "fovea/core/thread_pool.h"
#include "fovea/kernels/attention.h"

namespace fovea::cli {
namespace {

using kernels::AttentionParams;
using kernels::AttentionResult;
using kernels::PagedKv;
using kernels::Visibility;

constexpr uint64_t kSeed = 20240711;

struct Sizes {
  DType dtype = DType::f32;
  int64_t batch = 1, heads_q = 9, heads_kv = 3, queries = 0, keys = 0, dim = 64;
  bool causal = false;

  double pairs() const {
    const auto rows = static_cast<double>(queries), all = static_cast<double>(keys);
    return (causal ? rows * (all - rows) + rows * (rows + 1) / 2 : rows * all) *
           static_cast<double>(batch * heads_q);
  }
  double flops() const { return 4.0 * static_cast<double>(dim) * pairs(); }
  double bytes() const {
    return static_cast<double>(2 * batch * dim * (heads_q * queries + heads_kv * keys) * size_of(dtype));
  }
  std::string text() const {
    std::string result = std::string(name_of(dtype)) + (causal ? " causal" : queries == 1 ? "" : " full");
    if (batch > 1) result += " B=" + std::to_string(batch);
    if (queries != keys && queries > 1) result += " Tq=" + std::to_string(queries);
    result += (queries == keys ? " T=" : " Tk=") + std::to_string(keys);
    result += " heads " + std::to_string(heads_q);
    if (heads_kv != heads_q) result += "/" + std::to_string(heads_kv);
    return result + " D=" + std::to_string(dim);
  }
};

struct Problem {
  Tensor q, k, v;
  AttentionParams params;
};

Problem make(const Sizes& s) {
  const auto normal = [&](int64_t heads, int64_t rows, uint64_t stream) {
    return random_normal({s.batch, heads, rows, s.dim}, kSeed, stream).to(s.dtype);
  };
  Problem problem{
      normal(s.heads_q, s.queries, 0), normal(s.heads_kv, s.keys, 1), normal(s.heads_kv, s.keys, 2), {}};
  if (s.causal) problem.params.visible = Visibility::causal();
  return problem;
}

KernelCase forward_case(const Sizes& s) {
  return {s.text(), s.flops(), s.bytes(), s.dtype,
          [s] { return [p = make(s)] { kernels::flash_forward(p.q, p.k, p.v, p.params); }; }};
}

KernelCase backward_case(const Sizes& s) {
  return {s.text(), 2.5 * s.flops(), 4 * s.bytes(), DType::f32, [s] {
            const Problem p = make(s);
            const AttentionResult forward = kernels::flash_forward(p.q, p.k, p.v, p.params);
            const Tensor d_o = random_normal(forward.o.shape(), kSeed, 3).to(s.dtype);
            return [=] { kernels::flash_backward(p.q, p.k, p.v, forward, d_o, p.params); };
          }};
}

Sizes square(int64_t length, int64_t dim, bool causal, DType dtype = DType::f32) {
  return {.dtype = dtype, .queries = length, .keys = length, .dim = dim, .causal = causal};
}

std::vector<KernelCase> forward_cases() {
  std::vector<KernelCase> cases;
  for (DType dtype : {DType::f32, DType::bf16})
    for (int64_t dim : {64, 128})
      for (int64_t length : {2048, 4096, 8192, 16384})
        for (bool causal : {false, true}) cases.push_back(forward_case(square(length, dim, causal, dtype)));
  return cases;
}

std::vector<KernelCase> backward_cases() {
  std::vector<KernelCase> cases;
  for (int64_t dim : {64, 128})
    for (int64_t length : {2048, 4096})
      for (bool causal : {false, true}) cases.push_back(backward_case(square(length, dim, causal)));
  return cases;
}

// Windows of 7 x 7 and 8 x 8 pixels.
std::vector<KernelCase> window_cases() {
  std::vector<KernelCase> cases;
  for (int64_t rows : {49, 64})
    cases.push_back(
        forward_case({.batch = 1024, .heads_q = 4, .heads_kv = 4, .queries = rows, .keys = rows, .dim = 32}));
  return cases;
}

// Plans that a group compares with all keys: `run` is prepared on a problem of those sizes and a plan.
using PlanRun = std::function<std::function<void()>(const Sizes& sizes, const kernels::KeyPlan& plan)>;

// `all` is the case of all keys.
std::vector<KernelCase> with_plans(const KernelCase& all, const Sizes& s,
                                   const std::vector<double>& densities, const PlanRun& run) {
  std::vector<KernelCase> cases{all};
  const auto add = [&](const std::string& name, const kernels::KeyPlan& plan) {
    KernelCase planned{name + " of " + all.problem, causal_density(plan) * all.flops, all.bytes, DType::f32,
                       [plan, s, run] { return run(s, plan); }};
    planned.beside = 0;
    cases.push_back(planned);
  };
  for (double density : densities) {
    const std::string text = print_fixed(density, 2);
    add("blocks " + text, random_block_plan(s.keys, 64, density, kSeed));
    add("stripes " + text, random_stripe_plan(s.keys, 64, density, kSeed));
    add("tokens " + text, random_token_plan(s.keys, density, 0.02, kSeed));
  }
  add("unlike tokens 0.02", random_token_plan(s.keys, 0.02, 1.0, kSeed));
  return cases;
}

std::vector<KernelCase> plan_cases() {
  const Sizes s{.heads_q = 3, .heads_kv = 1, .queries = 32768, .keys = 32768, .causal = true};
  return with_plans(
      forward_case(s), s, {0.02, 0.1, 0.3}, [](const Sizes& sizes, const kernels::KeyPlan& plan) {
        return [p = make(sizes), plan] { kernels::plan_forward(p.q, p.k, p.v, plan, p.params); };
      });
}

std::vector<KernelCase> plan_backward_cases() {
  const Sizes s{.heads_q = 3, .heads_kv = 1, .queries = 8192, .keys = 8192, .causal = true};
  return with_plans(backward_case(s), s, {0.02, 0.1}, [](const Sizes& sizes, const kernels::KeyPlan& plan) {
    const Problem p = make(sizes);
    const AttentionResult forward = kernels::plan_forward(p.q, p.k, p.v, plan, p.params);
    const Tensor d_o = random_normal(forward.o.shape(), kSeed, 3);
    return [=] { kernels::plan_backward(p.q, p.k, p.v, plan, forward, d_o, p.params); };
  });
}

Sizes step(int64_t keys, int64_t heads_q, int64_t heads_kv, int64_t dim, DType dtype) {
  return {.dtype = dtype, .heads_q = heads_q, .heads_kv = heads_kv, .queries = 1, .keys = keys, .dim = dim};
}

// A cache that was just read may still lie in the processor's own: calls take turns on as many as exceed it.
constexpr double kBeyondCaches = 128e6;

KernelCase decode_case(const Sizes& s) {
  return {s.text(), s.flops(), s.bytes(), DType::f32, [s] {
            std::vector<Problem> problems;
            while (static_cast<double>(problems.size()) * s.bytes() < kBeyondCaches)
              problems.push_back(make(s));
            return [problems, turn = size_t{0}]() mutable {
              const Problem& p = problems[turn++ % problems.size()];
              kernels::decode(p.q, PagedKv::of(p.k, p.v, 16), {}, p.params);
            };
          }};
}

// What a cache holds in codes, `row_bytes` for a key or value, beside the bf16 case at `beside`.
KernelCase coded_case(const Sizes& s, const cache::PolicySpec& storage, int64_t row_bytes, int beside) {
  const cache::CacheShape shape{.heads_q = s.heads_q, .heads_kv = s.heads_kv, .dim = s.dim, .dim_v = s.dim};
  const auto fill = [s, storage, shape] {
    const Problem p = make(s);
    std::shared_ptr<cache::Storage> held = cache::make_storage(storage, s.heads_kv, shape);
    held->write({.k = p.k.select(0, 0), .v = p.v.select(0, 0)}, 0, s.keys, 0);
    return held;
  };
  std::string name = storage.name;
  for (const auto& [key, value] : storage.options) name.append(" ").append(key).append("=").append(value);
  KernelCase coded{name + s.text().substr(s.text().find(' ')), s.flops(),
                   static_cast<double>(2 * s.heads_kv * s.keys * row_bytes), DType::f32,
                   [s, fill] { return [q = make(s).q, held = fill()] { held->attend(q, {}, 0); }; }};
  coded.beside = beside;
  return coded;
}

std::vector<KernelCase> decode_cases() {
  std::vector<KernelCase> cases;
  for (int64_t keys : {8192, 32768, 131072})
    for (DType dtype : {DType::bf16, DType::f16, DType::f32}) {
      cases.push_back(decode_case(step(keys, 32, 8, 128, dtype)));
      cases.push_back(decode_case(step(keys, 9, 3, 64, dtype)));
    }
  constexpr int kWide = 6, kNarrow = 7;  // the bf16 cases of 32k keys
  for (int bits : {8, 4, 2}) {
    const cache::PolicySpec storage{"rtn", {{"bits", std::to_string(bits)}, {"group", "64"}}};
    constexpr int64_t kScaleAndZero = 4;
    const auto add = [&](const Sizes& s, int beside) {
      cases.push_back(coded_case(s, storage, s.dim * bits / 8 + s.dim / 64 * kScaleAndZero, beside));
    };
    add(step(32768, 32, 8, 128, DType::f32), kWide);
    add(step(32768, 9, 3, 64, DType::f32), kNarrow);
  }
  return cases;
}

// The same work on one thread and on all.
std::vector<KernelCase> thread_cases() {
  std::vector<KernelCase> cases;
  const auto add = [&](const std::string& name, KernelCase all) {
    all.problem = name + " " + all.problem;
    all.threads = threads();
    KernelCase one = all;
    one.problem += ", 1 thread";
    one.threads = 1;
    all.beside = static_cast<int>(cases.size());
    cases.push_back(one);
    cases.push_back(all);
  };
  add("forward", forward_case(square(4096, 64, true)));
  add("backward", backward_case(square(2048, 64, true)));
  return cases;
}

}  // namespace

const std::vector<KernelGroup>& kernel_groups() {
  static const std::vector<KernelGroup> groups{
      {"forward", "exact attention of a prompt", forward_cases},
      {"backward", "its gradients", backward_cases},
      {"windows", "thousands of short sequences", window_cases},
      {"plan", "planned keys beside all keys", plan_cases},
      {"plan-backward", "its gradients", plan_backward_cases},
      {"decode", "one query over a long cache", decode_cases},
      {"scan", "linear attention as a recurrence", scan_cases},
      {"product", "rows times compact weights", product_cases},
      {"threads", "one thread beside all", thread_cases},
  };
  return groups;
}

}  // namespace fovea::cli
