// SPDX-License-Identifier: Apache-2.0
#include "cli/roofline_json.h"

#include <algorithm>

#include "cli/progress.h"
#include "cli/table.h"
#include "cli/terminal.h"
#include "fovea/core/thread_pool.h"

namespace fovea::cli {

std::vector<kernels::Ceilings> ceilings_per_thread_count() {
  const int all = threads();
  std::vector<int> counts;
  for (int n = 1; n < all; n *= 2) counts.push_back(n);
  counts.push_back(all);
  std::vector<kernels::Ceilings> result;
  Progress progress("measuring ceilings", static_cast<int64_t>(counts.size()));
  for (int n : counts) {
    set_threads(n);
    result.push_back(kernels::measure_ceilings());
    progress.update(static_cast<int64_t>(result.size()));
  }
  return result;
}

kernels::Ceilings quick_ceilings() { return kernels::measure_ceilings(0.15, int64_t{128} << 20); }

kernels::Ceilings best_of(const kernels::Ceilings& a, const kernels::Ceilings& b) {
  return {.threads = a.threads,
          .f32_flops = std::max(a.f32_flops, b.f32_flops),
          .bf16_flops = std::max(a.bf16_flops, b.bf16_flops),
          .int8_ops = std::max(a.int8_ops, b.int8_ops),
          .read_bytes = std::max(a.read_bytes, b.read_bytes),
          .copy_bytes = std::max(a.copy_bytes, b.copy_bytes)};
}

nlohmann::ordered_json ceilings_json(const std::vector<kernels::Ceilings>& all) {
  auto result = nlohmann::ordered_json::array();
  for (const auto& c : all)
    result.push_back({{"threads", c.threads},
                      {"f32_flops", c.f32_flops},
                      {"bf16_flops", c.bf16_flops},
                      {"int8_ops", c.int8_ops},
                      {"read_bytes", c.read_bytes},
                      {"copy_bytes", c.copy_bytes}});
  return result;
}

std::string ceilings_table(const std::vector<kernels::Ceilings>& all) {
  Table table({{"THREADS", true},
               {"F32", true},
               {"BF16 DOT", true},
               {"INT8 DOT", true},
               {"READ", true},
               {"COPY", true}});
  const auto rate = [](double value, const char* unit) {
    return value > 0 ? print_quantity(value, unit) : std::string("-");
  };
  for (const auto& c : all)
    table.add({std::to_string(c.threads), rate(c.f32_flops, "FLOP/s"), rate(c.bf16_flops, "FLOP/s"),
               rate(c.int8_ops, "OP/s"), rate(c.read_bytes, "B/s"), rate(c.copy_bytes, "B/s")});
  return table.to_string(terminal_width());
}

}  // namespace fovea::cli
