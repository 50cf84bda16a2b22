// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_kernels.h"

#include <algorithm>
#include <iostream>
#include <optional>

#include "cli/bench_timing.h"
#include "cli/kernel_cases.h"
#include "cli/progress.h"
#include "cli/roofline_json.h"
#include "cli/table.h"
#include "cli/terminal.h"
#include "fovea/core/error.h"
#include "fovea/core/thread_pool.h"

namespace fovea::cli {
namespace {

struct KernelRow {
  const KernelGroup* group;
  KernelCase subject;
  std::optional<KernelCase> other;
  double seconds = 0, other_seconds = 0;

  double work() const {
    // What binds the case that it stands beside: a decoded token's operations do not.
    constexpr double kOperationsPerByte = 16;
    const bool compute = other->flops > kOperationsPerByte * other->bytes;
    return compute ? subject.flops / other->flops : subject.bytes / other->bytes;
  }
  double time() const { return seconds / other_seconds; }
};

Timed timed(const KernelCase& subject) {
  Timed result{subject.prepare()};
  if (subject.threads > 0)
    result.before = [count = subject.threads, run = result.run] {
      if (threads() == count) return;
      set_threads(count);
      run();  // the first call of new workers finds their memory cold
    };
  return result;
}

KernelRow run_case(const KernelGroup& group, const std::vector<KernelCase>& cases, const KernelCase& subject,
                   int repeat) {
  KernelRow row{&group, subject, {}};
  Timed own = timed(subject), other;
  if (subject.beside >= 0) {
    row.other = cases[static_cast<size_t>(subject.beside)];
    other = timed(*row.other);
  }
  const int before = threads();
  measure(own, row.other ? &other : nullptr, repeat);
  if (threads() != before) set_threads(before);
  row.seconds = own.median();
  if (row.other) row.other_seconds = other.median();
  return row;
}

double flops_ceiling(DType arithmetic, const kernels::Ceilings& ceilings) {
  if (arithmetic == DType::bf16 && ceilings.bf16_flops > 0) return ceilings.bf16_flops;
  if (arithmetic == DType::i8 && ceilings.int8_ops > 0) return ceilings.int8_ops;
  return ceilings.f32_flops;
}

nlohmann::ordered_json json_of(const KernelRow& row, const kernels::Ceilings& ceilings) {
  const KernelCase& c = row.subject;
  const double compute = c.flops / flops_ceiling(c.arithmetic, ceilings);
  const double memory = c.bytes / ceilings.read_bytes;
  nlohmann::ordered_json json{{"kernel", row.group->name},
                              {"problem", c.problem},
                              {"threads", ceilings.threads},
                              {"seconds", row.seconds},
                              {"flops", c.flops},
                              {"bytes", c.bytes},
                              {"limit", compute > memory ? "compute" : "memory"},
                              {"fraction", std::max(compute, memory) / row.seconds},
                              {"beside", nullptr},
                              {"work_share", nullptr},
                              {"time_share", nullptr}};
  if (row.other) {
    json["beside"] = row.other->problem;
    json["work_share"] = row.work();
    json["time_share"] = row.time();
  }
  return json;
}

std::string table_of(const nlohmann::ordered_json& rows) {
  Table table({{"KERNEL"},
               {"PROBLEM"},
               {"TIME", true},
               {"RATE", true},
               {"LIMIT"},
               {"OF LIMIT", true},
               {"WORK", true},
               {"TIME SHARE", true}});
  const auto share = [](const nlohmann::ordered_json& value) {
    return value.is_null() ? std::string("-") : print_fixed(value.get<double>(), 3);
  };
  for (const auto& row : rows) {
    const bool compute = row["limit"] == "compute";
    const double seconds = row["seconds"], amount = row[compute ? "flops" : "bytes"];
    table.add({row["kernel"], row["problem"], print_seconds(seconds),
               print_quantity(amount / seconds, compute ? "FLOP/s" : "B/s"), row["limit"],
               print_fixed(100 * row["fraction"].get<double>(), 1) + " %", share(row["work_share"]),
               share(row["time_share"])});
  }
  return table.to_string(terminal_width());
}

std::vector<const KernelGroup*> chosen(const std::vector<std::string>& names) {
  std::vector<const KernelGroup*> result;
  std::vector<std::string> known;
  for (const auto& group : kernel_groups()) {
    known.push_back(group.name);
    if (names.empty()) result.push_back(&group);
  }
  for (const auto& name : names) {
    const auto at = std::find(known.begin(), known.end(), name);
    require(at != known.end(), "bench --kernels: '", name, "' is none of ", join(known, ", "));
    result.push_back(&kernel_groups()[static_cast<size_t>(at - known.begin())]);
  }
  return result;
}

}  // namespace

void bench_kernels(const std::vector<std::string>& names, const KernelBenchOptions& options) {
  const auto groups = chosen(names);
  auto ceilings = quick_ceilings();
  std::vector<KernelRow> rows;
  for (const auto* group : groups) {
    const auto cases = group->cases();
    Progress progress(group->name, static_cast<int64_t>(cases.size()));
    for (size_t i = 0; i < cases.size(); ++i) {
      progress.update(static_cast<int64_t>(i), cases[i].problem);
      rows.push_back(run_case(*group, cases, cases[i], options.repeat));
    }
  }
  ceilings = best_of(ceilings, quick_ceilings());
  auto json = nlohmann::ordered_json::array();
  for (const auto& row : rows) json.push_back(json_of(row, ceilings));
  std::cout << (options.json ? json.dump(2) + "\n" : table_of(json));
}

}  // namespace fovea::cli
