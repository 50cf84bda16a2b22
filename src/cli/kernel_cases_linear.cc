// SPDX-License-Identifier: Apache-2.0
// Linear scans and products with weights.
#include <cmath>
#include <memory>

#include "cli/kernel_cases.h"
#include "fovea/core/rng.h"
#include "fovea/kernels/linear_scan.h"
#include "fovea/kernels/matmul.h"

namespace fovea::cli {
namespace {

constexpr uint64_t kSeed = 20240711;

struct Rule {
  const char* name;
  int decay_rank;  // of log_decay; 0: none
  bool delta = false;
};
constexpr Rule kRules[] = {
    {"no decay", 0}, {"head decay", 1}, {"token decay", 3}, {"channel decay", 4}, {"delta rule", 0, true}};

struct Scan {
  Tensor q, k, v;
  kernels::LinearScanParams params;
};

// Keys of unit length, so that the delta rule is stable; decays between e^-0.2 and 1.
Scan make_scan(const Rule& rule, int64_t heads, int64_t length, int64_t dim) {
  const auto rows = [&](uint64_t stream) { return random_normal({1, heads, length, dim}, kSeed, stream); };
  Scan scan{rows(0), rows(1), rows(2), {}};
  const float unit = 1.0f / std::sqrt(static_cast<float>(dim));
  for (int64_t i = 0; i < scan.k.size(); ++i) scan.k.data<float>()[i] *= unit;
  scan.params.delta = rule.delta;
  if (rule.decay_rank == 0) return scan;
  const Shape shape = rule.decay_rank == 1   ? Shape{heads}
                      : rule.decay_rank == 3 ? Shape{1, heads, length}
                                             : Shape{1, heads, length, dim};
  scan.params.log_decay = random_uniform(shape, kSeed, 3);
  for (int64_t i = 0; i < scan.params.log_decay.size(); ++i) scan.params.log_decay.data<float>()[i] *= -0.2f;
  return scan;
}

// Operations of the recurrence as chunks of 64 tokens compute it.
double scan_flops(const Rule& rule, double tokens, double dim) {
  constexpr double kChunk = 64;
  const double passes = rule.delta ? 2 : 1;
  return tokens * (4 * dim * dim + passes * kChunk * 2 * dim + (rule.delta ? 2 * dim * dim : 0));
}

std::string text(const Rule& rule, const char* what, int64_t heads, int64_t length, int64_t dim) {
  std::string result = std::string(rule.name) + " " + what;
  if (length > 1) result += " T=" + std::to_string(length);
  return result + " heads " + std::to_string(heads) + " D=" + std::to_string(dim);
}

KernelCase step_case(const Rule& rule) {
  constexpr int64_t kHeads = 1024, kDim = 128;  // 67 MB of states, beyond the caches
  const double state = 4.0 * kHeads * kDim * kDim;
  return {text(rule, "step", kHeads, 1, kDim), 0, 2 * state, DType::f32, [rule] {
            const Scan scan = make_scan(rule, kHeads, 1, kDim);
            const Tensor held = random_normal({1, kHeads, kDim, kDim}, kSeed, 4);
            return
                [scan, held] { kernels::linear_scan_step(scan.q, scan.k, scan.v, held, held, scan.params); };
          }};
}

KernelCase product_case(const std::string& name, int64_t rows, DType arithmetic, double weight_bytes,
                        const std::function<std::unique_ptr<kernels::Linear>(int64_t size)>& make) {
  // One row reads weights beyond the caches; many rows are bound by arithmetic at any size.
  const int64_t side = rows == 1 ? 8192 : 2048;
  const auto size = static_cast<double>(side), m = static_cast<double>(rows);
  return {name + " weights " + std::to_string(rows) + " rows " + std::to_string(side) + "x" +
              std::to_string(side),
          2 * m * size * size, weight_bytes * size * size + 8 * m * size, arithmetic, [rows, side, make] {
            const std::shared_ptr<kernels::Linear> linear = make(side);
            const Tensor x = random_normal({rows, side}, kSeed, 5), y = Tensor::empty({rows, side});
            return [=] { linear->apply(x, y); };
          }};
}

std::unique_ptr<kernels::Linear> quantised(int64_t size, int bits) {
  kernels::AffineWeight weight{.rows = size, .columns = size, .bits = bits};
  weight.codes = Tensor::empty({size, size * bits / 8}, DType::u8);
  for (int64_t i = 0; i < weight.codes.size(); ++i)
    weight.codes.data<uint8_t>()[i] = static_cast<uint8_t>(i * 151 >> 3);
  weight.scale = random_uniform({size, size / weight.group}, kSeed, 7);
  weight.offset = random_normal({size, size / weight.group}, kSeed, 8);
  return kernels::make_linear(weight);
}

}  // namespace

std::vector<KernelCase> scan_cases() {
  std::vector<KernelCase> cases;
  constexpr int64_t kHeads = 8, kLength = 8192;
  for (int64_t dim : {64, 128})
    for (const Rule& rule : kRules) {
      const double tokens = static_cast<double>(kHeads * kLength);
      const double flops = scan_flops(rule, tokens, static_cast<double>(dim));
      const double bytes = tokens * static_cast<double>(16 * dim);
      cases.push_back({text(rule, "forward", kHeads, kLength, dim), flops, bytes, DType::f32, [=] {
                         return [scan = make_scan(rule, kHeads, kLength, dim)] {
                           kernels::linear_scan(scan.q, scan.k, scan.v, scan.params);
                         };
                       }});
      // Counted as attention's: two and a half times the forward's operations.
      cases.push_back({text(rule, "backward", kHeads, kLength, dim), 2.5 * flops, 3 * bytes, DType::f32, [=] {
                         const Scan scan = make_scan(rule, kHeads, kLength, dim);
                         const Tensor d_o = random_normal(scan.v.shape(), kSeed, 10);
                         return
                             [=] { kernels::linear_scan_backward(scan.q, scan.k, scan.v, d_o, scan.params); };
                       }});
    }
  for (const Rule& rule : {kRules[2], kRules[4]}) cases.push_back(step_case(rule));
  return cases;
}

std::vector<KernelCase> product_cases() {
  std::vector<KernelCase> cases;
  for (int64_t rows : {1, 512}) {
    cases.push_back(product_case("4-bit", rows, DType::i8, 0.75, [](int64_t n) { return quantised(n, 4); }));
    cases.push_back(product_case("8-bit", rows, DType::i8, 1.25, [](int64_t n) { return quantised(n, 8); }));
    cases.push_back(product_case("bf16", rows, DType::bf16, 2, [](int64_t n) {
      return kernels::make_linear(random_normal({n, n}, kSeed, 9).to(DType::bf16));
    }));
  }
  return cases;
}

}  // namespace fovea::cli
