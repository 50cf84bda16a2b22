// SPDX-License-Identifier: Apache-2.0
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <iostream>

#include "cli/arguments.h"
#include "cli/catalogue_json.h"
#include "cli/command.h"
#include "cli/errors.h"
#include "cli/interrupts.h"
#include "cli/output_path.h"
#include "cli/table.h"
#include "cli/terminal.h"
#include "fovea/core/catalogue.h"
#include "fovea/core/memory.h"
#include "fovea/core/thread_pool.h"
#include "fovea/io/safetensors.h"

namespace fovea::cli {
namespace {

struct RunArguments {
  std::string name, input, output;
  SetArgument set;
  DeviceArgument device;
  ThreadsArgument threads;
  bool stats = false, json = false;
};

struct RunStats {
  double seconds = 0;
  int64_t input_bytes = 0, output_bytes = 0;
  int64_t scratch_bytes = 0;  // peak of Fovea's own allocations during the run, outputs not counted
};

// Worked-case files hold in.NAME and out.NAME: their inputs are taken under the bare name.
Tensors inputs_of(const Tensors& file) {
  const auto is_case_input = [](const auto& item) { return item.first.starts_with("in."); };
  if (std::none_of(file.begin(), file.end(), is_case_input)) return file;
  Tensors inputs;
  for (const auto& [name, tensor] : file) {
    if (name.starts_with("in."))
      inputs.set(name.substr(3), tensor);
    else if (!name.starts_with("out."))
      inputs.set(name, tensor);
  }
  return inputs;
}

int64_t bytes_of(const Tensors& tensors) {
  int64_t bytes = 0;
  for (const auto& [name, tensor] : tensors) bytes += tensor.bytes();
  return bytes;
}

// Outputs that the operator did not define (an absent optional one) are not written.
Tensors defined(const Tensors& outputs) {
  Tensors result;
  for (const auto& [name, tensor] : outputs)
    if (tensor.defined()) result.set(name, tensor);
  return result;
}

void write_outputs(const RunArguments& arguments, const Tensors& outputs) {
  const DeferInterrupts wait_for_the_file;
  try {
    io::write_safetensors(arguments.output, outputs, {{"op", arguments.name}});
  } catch (const Error& error) {
    throw RunError(error.what());
  }
}

nlohmann::ordered_json result_json(const RunArguments& arguments, const options::Pairs& pairs,
                                   const Operator& op, const Tensors& outputs, const RunStats& stats) {
  auto tensors = nlohmann::ordered_json::array();
  for (const auto& [name, tensor] : outputs)
    tensors.push_back({{"name", name},
                       {"dtype", name_of(tensor.dtype())},
                       {"shape", std::vector<int64_t>(tensor.shape().begin(), tensor.shape().end())}});
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  nlohmann::ordered_json result = {{"operator", op.name},  {"device", arguments.device.text},
                                   {"threads", threads()}, {"options", options_json(op.options, pairs)},
                                   {"outputs", tensors},   {"output", arguments.output}};
  if (arguments.stats) {
    result["seconds"] = stats.seconds;
    result["scratch_bytes"] = stats.scratch_bytes;
    result["input_bytes"] = stats.input_bytes;
    result["output_bytes"] = stats.output_bytes;
    result["peak_resident_bytes"] = int64_t{usage.ru_maxrss} * 1024;
  }
  return result;
}

void print_stats(const RunStats& stats) {
  std::cout << "seconds        " << print_fixed(stats.seconds, 6) << "\n"
            << "scratch_bytes  " << stats.scratch_bytes << "\n"
            << "input_bytes    " << stats.input_bytes << "\n"
            << "output_bytes   " << stats.output_bytes << "\n";
}

void run_operator(const RunArguments& arguments) {
  const Operator& op = catalogue().at(arguments.name);
  const options::Pairs pairs = arguments.set.pairs();
  arguments.device.device();
  check_output_path(arguments.output);
  arguments.threads.apply();
  Tensors inputs;
  if (!arguments.input.empty()) inputs = inputs_of(io::read_safetensors(arguments.input).tensors);

  RunStats stats;
  const int64_t held = memory::current_bytes();
  memory::reset_peak();
  const auto begin = std::chrono::steady_clock::now();
  const Tensors outputs = defined(op.run(inputs, pairs));
  stats.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  stats.input_bytes = bytes_of(inputs);
  stats.output_bytes = bytes_of(outputs);
  stats.scratch_bytes = std::max<int64_t>(0, memory::peak_bytes() - held - stats.output_bytes);
  write_outputs(arguments, outputs);

  if (arguments.json)
    std::cout << result_json(arguments, pairs, op, outputs, stats).dump(2) << "\n";
  else if (arguments.stats)
    print_stats(stats);
}

}  // namespace

Command add_run(CLI::App& program) {
  auto arguments = std::make_shared<RunArguments>();
  CLI::App* parser = program.add_subcommand("run", "Runs one operator on the tensors of a safetensors file.");
  parser->add_option("OPERATOR", arguments->name, "an operator's name")->required();
  parser->add_option(
      "INPUT", arguments->input,
      "safetensors file with the inputs by name (q, k, v, ...); files with in.NAME and out.NAME\n"
      "tensors are taken by their in.NAME; none for an operator without inputs");
  parser->add_option("-o,--output", arguments->output, "safetensors file to write; replaced when complete")
      ->type_name("FILE")
      ->required();
  arguments->set.add_to(*parser);
  arguments->device.add_to(*parser);
  arguments->threads.add_to(*parser);
  parser->add_flag(
      "--stats", arguments->stats,
      "seconds, scratch_bytes (peak of working memory beyond inputs and outputs), input and output\n"
      "bytes");
  parser->add_flag("--json", arguments->json, "one object on stdout");
  parser->footer(
      "Examples:\n"
      "  fovea run flash-attention in.safetensors -o out.safetensors --set causal=true\n"
      "  fovea run quest in.safetensors -o out.safetensors --set page_size=32 --set token_budget=512 "
      "--stats");
  return {parser, [arguments] { run_operator(*arguments); }};
}

}  // namespace fovea::cli
