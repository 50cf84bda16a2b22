// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <iostream>

#include "cli/arguments.h"
#include "cli/command.h"
#include "cli/environment.h"
#include "cli/roofline_json.h"
#include "cli/table.h"
#include "fovea/core/catalogue.h"
#include "fovea/core/thread_pool.h"
#include "fovea/kernels/target.h"

namespace fovea::cli {
namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

int64_t physical_memory() {
  return static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<int64_t>(sysconf(_SC_PAGESIZE));
}

void run_info(const ThreadsArgument& threads_argument, bool roofline, bool json) {
  threads_argument.apply();
  const auto targets = kernels::simd_targets();
  const std::string active = kernels::active_simd_target();
  std::vector<kernels::Ceilings> ceilings;
  if (roofline) ceilings = ceilings_per_thread_count();
  const int64_t memory = physical_memory();
  if (json) {
    nlohmann::ordered_json result = {{"version", FOVEA_VERSION},
                                     {"compiler", compiler()},
                                     {"build_type", FOVEA_BUILD_TYPE},
                                     {"simd", {{"available", targets}, {"active", active}}},
                                     {"devices", available_devices()},
                                     {"threads", threads()},
                                     {"memory_bytes", memory},
                                     {"operators", catalogue().all().size()},
                                     {"models_folder", environment().models.string()}};
    if (roofline) result["roofline"] = ceilings_json(ceilings);
    std::cout << result.dump(2) << "\n";
    return;
  }
  std::cout << "fovea      " FOVEA_VERSION "\n"
            << "compiler   " << compiler() << ", " FOVEA_BUILD_TYPE "\n"
            << "simd       " << active << " (available: " << join(targets, ", ") << ")\n"
            << "devices    " << join(available_devices(), ", ") << "\n"
            << "threads    " << threads() << "\n"
            << "memory     " << print_quantity(static_cast<double>(memory), "B") << "\n"
            << "operators  " << catalogue().all().size() << "\n"
            << "models     " << environment().models.string() << "\n";
  if (roofline) std::cout << "\n" << ceilings_table(ceilings);
}

}  // namespace

Command add_info(CLI::App& program) {
  struct Arguments {
    ThreadsArgument threads;
    bool roofline = false, json = false;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* parser = program.add_subcommand(
      "info", "Build, SIMD targets, devices, threads; the measured roofline on request.");
  arguments->threads.add_to(*parser);
  parser->add_flag("--roofline", arguments->roofline,
                   "measure peak arithmetic and memory bandwidth for 1, 2, 4, ... threads (2 s each)");
  parser->add_flag("--json", arguments->json, "one object on stdout");
  parser->footer(
      "Environment: FOVEA_SIMD forces a SIMD target (as --simd), FOVEA_THREADS sets the number of threads,\n"
      "XDG_CACHE_HOME moves the folder of models.");
  return {parser, [arguments] { run_info(arguments->threads, arguments->roofline, arguments->json); }};
}

}  // namespace fovea::cli
