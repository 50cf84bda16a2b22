// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <iostream>

#include "cli/arguments.h"
#include "cli/bench_cost.h"
#include "cli/bench_kernels.h"
#include "cli/bench_timing.h"
#include "cli/catalogue_json.h"
#include "cli/command.h"
#include "cli/progress.h"
#include "cli/roofline_json.h"
#include "cli/table.h"
#include "cli/terminal.h"
#include "fovea/core/catalogue.h"
#include "fovea/core/thread_pool.h"

namespace fovea::cli {
namespace {

struct BenchArguments {
  std::vector<std::string> operators;
  std::string lengths = "1k,4k", queries, batch = "1", heads = "8", dim = "64", dtype = "f32";
  bool causal = false, not_causal = false, roofline = false, kernels = false, json = false;
  int repeat = 0;
  SetArgument set;
  ThreadsArgument threads;
  DeviceArgument device;
};

struct Row {
  BenchProblem problem;
  double seconds = 0;
  BenchCost cost;
  BenchBound bound;
  int64_t scratch_bytes = 0;
  std::optional<double> ratio_to_exact, error;
};

// An operator on tensors, and what came of it.
struct Subject {
  const Operator* op;
  Tensors inputs;
  options::Pairs pairs;
  Tensors outputs = {};

  Timed timed() {
    return {[this] {
      outputs = {};
      outputs = op->run(inputs, pairs);
    }};
  }
};

// ||got - want|| / ||want||
double relative_error(const Tensor& got_any, const Tensor& want_any) {
  const Tensor got = got_any.to(DType::f32).contiguous(), want = want_any.to(DType::f32).contiguous();
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < got.size(); ++i) {
    const double x = got.data<float>()[i], y = want.data<float>()[i];
    difference += (x - y) * (x - y);
    norm += y * y;
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

// Exact attention on the q, k and v of another operator, or nothing where there is no comparison: the
// operator is no attention, or exact attention is not built in.
std::optional<Subject> exact_for(const BenchProblem& problem, const Tensors& inputs) {
  const auto& outputs = problem.op->outputs;
  const bool backward =
      std::any_of(outputs.begin(), outputs.end(), [](const auto& spec) { return spec.name == "dq"; });
  const Operator* exact = catalogue().find(backward ? "flash-attention-backward" : "flash-attention");
  if (exact == nullptr) return {};
  Tensors given;
  for (const char* name : {"q", "k", "v", "do"}) {
    if (std::string_view(name) == "do" && !backward) continue;
    if (!inputs.contains(name)) return {};
    given.set(name, inputs[name]);
  }
  Subject subject{exact, given, {{"causal", options::print(problem.causal)}}};
  if (!exact->supports(Problem::of(subject.inputs, subject.pairs)).yes) return {};
  return subject;
}

Row bench_row(const BenchProblem& problem, int repeat) {
  Subject subject{problem.op, make_inputs(problem), problem.options};
  std::optional<Subject> exact = exact_for(problem, subject.inputs);
  const bool itself = exact && exact->op == problem.op &&
                      std::all_of(problem.options.begin(), problem.options.end(),
                                  [](const auto& pair) { return pair.first == "causal"; });
  Timed timed = subject.timed(), timed_exact = exact ? exact->timed() : Timed();
  measure(timed, exact && !itself ? &timed_exact : nullptr, repeat);
  Row row{.problem = problem,
          .seconds = timed.median(),
          .cost = cost_of(problem, subject.inputs, subject.outputs),
          .scratch_bytes = timed.scratch_bytes};
  if (!exact) return row;
  const Subject& reference = itself ? subject : *exact;
  row.ratio_to_exact = (itself ? timed : timed_exact).median() / row.seconds;
  const char* compared = subject.outputs.contains("dq") ? "dq" : "o";
  const Tensor got = subject.outputs[compared], want = reference.outputs[compared];
  if (got.defined() && got.shape() == want.shape()) row.error = relative_error(got, want);
  return row;
}

template <typename Value>
nlohmann::ordered_json or_null(const std::optional<Value>& value) {
  return value && std::isfinite(*value) ? nlohmann::ordered_json(*value) : nlohmann::ordered_json();
}

nlohmann::ordered_json row_json(const Row& row, const std::string& device) {
  const auto& shape = row.problem.shape;
  return {{"operator", row.problem.op->name},
          {"device", device},
          {"dtype", name_of(shape.dtype)},
          {"batch", shape.batch},
          {"heads_q", shape.heads_q},
          {"heads_kv", shape.heads_kv},
          {"length_q", shape.length_q},
          {"length_k", shape.length_k},
          {"dim", shape.dim},
          {"dim_v", shape.dim_v},
          {"causal", row.problem.causal},
          {"threads", threads()},
          {"options", options_json(row.problem.op->options, row.problem.options)},
          {"seconds", row.seconds},
          {"flops", or_null(row.cost.flops)},
          {"bytes", row.cost.bytes},
          {"scratch_bytes", row.scratch_bytes},
          {"limit", row.bound.limit},
          {"fraction", row.bound.seconds / row.seconds},
          {"ratio_to_exact", or_null(row.ratio_to_exact)},
          {"density", or_null(row.cost.density)},
          {"error", or_null(row.error)},
          {"ceiling_flops", row.bound.flops_ceiling},
          {"ceiling_bytes", row.bound.bytes_ceiling}};
}

std::string rows_table(const std::vector<Row>& rows) {
  Table table({{"OPERATOR"},
               {"TQ", true},
               {"TK", true},
               {"TIME", true},
               {"RATE", true},
               {"LIMIT"},
               {"OF LIMIT", true},
               {"VS EXACT", true},
               {"DENSITY", true},
               {"ERROR", true},
               {"SCRATCH", true}});
  const auto or_dash = [](const std::optional<double>& value, int decimals, const char* unit = "") {
    return value ? print_fixed(*value, decimals) + unit : std::string("-");
  };
  for (const auto& row : rows) {
    const auto& cost = row.cost;
    char error[32] = "-";
    if (row.error) std::snprintf(error, sizeof(error), "%.1e", *row.error);
    table.add({row.problem.op->name, std::to_string(row.problem.shape.length_q),
               std::to_string(row.problem.shape.length_k), print_seconds(row.seconds),
               row.bound.limit == "compute" ? print_quantity(cost.flops.value_or(0) / row.seconds, "FLOP/s")
                                            : print_quantity(cost.bytes / row.seconds, "B/s"),
               row.bound.limit, print_fixed(100 * row.bound.seconds / row.seconds, 1) + " %",
               or_dash(row.ratio_to_exact, 2, "x"), or_dash(cost.density, 3), error,
               print_quantity(static_cast<double>(row.scratch_bytes), "B")});
  }
  return table.to_string(terminal_width());
}

// The options that `op` knows; `used` remembers which were known to some operator.
options::Pairs pairs_for(const Operator& op, const options::Pairs& pairs, std::vector<bool>& used) {
  options::Pairs result;
  for (size_t i = 0; i < pairs.size(); ++i) {
    const bool known = std::any_of(op.options.begin(), op.options.end(), [&](const auto& info) {
      return info.name == pairs[i].first || info.alias == pairs[i].first;
    });
    if (!known) continue;
    result.push_back(pairs[i]);
    used[i] = true;
  }
  return result;
}

std::vector<BenchProblem> plan_rows(const BenchArguments& arguments) {
  BenchShape shape;
  shape.batch = parse_length(arguments.batch, "--batch");
  std::tie(shape.heads_q, shape.heads_kv) = parse_pair(arguments.heads, "--heads");
  std::tie(shape.dim, shape.dim_v) = parse_pair(arguments.dim, "--dim");
  const auto dtype = parse_dtype(arguments.dtype);
  require(dtype && is_float(*dtype), "--dtype expects f32, f16 or bf16, got '", arguments.dtype, "'");
  shape.dtype = *dtype;
  std::optional<bool> causal;
  if (arguments.causal || arguments.not_causal) causal = arguments.causal;
  const auto lengths = parse_lengths(arguments.lengths, "--length");
  const options::Pairs pairs = arguments.set.pairs();
  std::vector<bool> used(pairs.size());
  std::vector<BenchProblem> problems;
  for (int64_t length : lengths)
    for (const auto& name : arguments.operators) {
      const Operator& op = catalogue().at(name);
      shape.length_k = length;
      shape.length_q = arguments.queries.empty() ? length : parse_length(arguments.queries, "--queries");
      problems.push_back(plan_bench(op, shape, pairs_for(op, pairs, used), causal));
      const Support support = op.supports(problems.back().problem());
      if (!support.yes) throw Error("bench: " + support.reason);
    }
  for (size_t i = 0; i < pairs.size(); ++i)
    require(used[i], "--set ", pairs[i].first, ": none of ", join(arguments.operators, ", "),
            " has this option");
  return problems;
}

void run_bench(const BenchArguments& arguments) {
  arguments.device.device();
  arguments.threads.apply();
  if (arguments.kernels) return bench_kernels(arguments.operators, {arguments.repeat, arguments.json});
  if (arguments.operators.empty()) {
    require(arguments.roofline, "bench: name an operator, or ask for --kernels or --roofline");
    const auto ceilings = ceilings_per_thread_count();
    std::cout << (arguments.json ? ceilings_json(ceilings).dump(2) + "\n" : ceilings_table(ceilings));
    return;
  }
  const auto problems = plan_rows(arguments);
  const bool careful = arguments.roofline;
  auto ceilings = careful ? ceilings_per_thread_count() : std::vector{quick_ceilings()};
  std::vector<Row> rows;
  {
    Progress progress("bench", static_cast<int64_t>(problems.size()));
    for (const auto& problem : problems) {
      progress.update(static_cast<int64_t>(rows.size()), problem.op->name);
      rows.push_back(bench_row(problem, arguments.repeat));
    }
  }
  if (!careful) ceilings.back() = best_of(ceilings.back(), quick_ceilings());
  for (auto& row : rows) row.bound = bound_of(row.cost, row.problem.shape.dtype, ceilings.back());
  if (arguments.json) {
    auto result = nlohmann::ordered_json::array();
    for (const auto& row : rows) result.push_back(row_json(row, arguments.device.text));
    std::cout << result.dump(2) << "\n";
    return;
  }
  if (arguments.roofline) std::cout << ceilings_table(ceilings) << "\n";
  std::cout << rows_table(rows);
}

}  // namespace

Command add_bench(CLI::App& program) {
  auto arguments = std::make_shared<BenchArguments>();
  CLI::App* parser = program.add_subcommand("bench", "Speed, bytes, fidelity, and ratio to exact attention.");
  parser->add_option("OPERATOR", arguments->operators, "operators; with --kernels, groups of kernels");
  const auto add = [&](const char* flag, std::string& value, const char* help, const char* type) {
    parser->add_option(flag, value, help)->type_name(type);
  };
  add("--length", arguments->lengths, "key lengths, e.g. 1k,8k,64k (default 1k,4k)", "TK[,...]");
  add("--queries", arguments->queries, "query length (default: as many as keys; 1 is a decode step)", "TQ");
  add("--batch", arguments->batch, "batch (default 1)", "B");
  add("--heads", arguments->heads, "query heads, and key/value heads where fewer (default 8)", "HQ[/HKV]");
  add("--dim", arguments->dim, "head dimension, and that of values where it differs (default 64)", "D[/DV]");
  add("--dtype", arguments->dtype, "f32, f16 or bf16 (default f32)", "TYPE");
  CLI::Option* causal = parser->add_flag("--causal", arguments->causal, "causal attention");
  parser->add_flag("--no-causal", arguments->not_causal, "every query sees every key")->excludes(causal);
  arguments->set.add_to(*parser);
  arguments->threads.add_to(*parser);
  arguments->device.add_to(*parser);
  parser->add_option("--repeat", arguments->repeat, "repetitions (default: until the median is steady)")
      ->type_name("N")
      ->check(CLI::Range(1, 100000));
  parser->add_flag("--roofline", arguments->roofline,
                   "measure the machine's ceilings with care first (2 s each); alone: print them");
  parser->add_flag("--kernels", arguments->kernels,
                   "the kernels under the operators at fixed sizes, each beside its ceiling");
  parser->add_flag("--json", arguments->json, "an array of rows on stdout");
  parser->footer(
      "Inputs are seeded normal numbers of the shapes that the operator's symbols ask for. Columns: the "
      "median\n"
      "time; which ceiling bounds the operator here and the share of it that is reached (measured on this "
      "machine\n"
      "with the same threads); ratio_to_exact = seconds of exact attention (flash-attention, or its "
      "backward) on\n"
      "the same q, k, v and causal flag / seconds of the operator, so above 1 is faster; density = keys read "
      "over\n"
      "keys visible; error = ||o - exact|| / ||exact||; scratch_bytes = peak of working memory. --set goes "
      "to the operators that have the option.\n"
      "\n"
      "--kernels: names are groups (`forward`, `decode`, ...; none: all of them). WORK is the share of the\n"
      "operations or bytes of the case it is compared with, TIME SHARE the share of its time, measured in "
      "turns.\n"
      "\n"
      "Examples:\n"
      "  fovea bench flash-attention --length 1k,8k,64k --heads 32/8 --dim 128 --causal\n"
      "  fovea bench quest --queries 1 --length 128k --heads 32/8 --dim 128 --set token_budget=2048 --json\n"
      "  fovea bench --kernels plan decode");
  return {parser, [arguments] { run_bench(*arguments); }};
}

}  // namespace fovea::cli
