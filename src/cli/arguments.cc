// SPDX-License-Identifier: Apache-2.0
#include "cli/arguments.h"

#include "cli/environment.h"
#include "fovea/core/thread_pool.h"

namespace fovea::cli {
namespace {

constexpr int kMaxThreads = 1024;

int checked_threads(int64_t threads, const std::string& source) {
  require(threads >= 1 && threads <= kMaxThreads, source, " = ", threads, " is outside its range [1, ",
          kMaxThreads, "]");
  return static_cast<int>(threads);
}

}  // namespace

void ThreadsArgument::add_to(CLI::App& parser) {
  parser.add_option("--threads", threads, "worker threads (default: one per core, or FOVEA_THREADS)")
      ->type_name("N")
      ->check([](const std::string& text) {
        int64_t value = 0;
        options::parse(text, "--threads", value);
        checked_threads(value, "--threads");
        return std::string();
      });
}

void ThreadsArgument::apply() const {
  const std::string& text = environment().threads;
  if (threads > 0) {
    set_threads(threads);
  } else if (!text.empty()) {
    int64_t value = 0;
    options::parse(text, "FOVEA_THREADS", value);
    set_threads(checked_threads(value, "FOVEA_THREADS"));
  }
}

void DeviceArgument::add_to(CLI::App& parser) {
  parser.add_option("--device", text, "where to run: cpu or cuda")
      ->type_name("DEVICE")
      ->capture_default_str();
}

Device DeviceArgument::device() const {
  if (text == "cpu") return Device::cpu();
  require(text != "cuda" && !text.starts_with("cuda:"), "--device ", text,
          ": this build of Fovea has no CUDA support; available: cpu");
  throw Error("--device expects cpu or cuda, got '" + text + "'");
}

void SetArgument::add_to(CLI::App& parser) {
  parser
      .add_option("--set", texts, "an option of the operator; repeatable (`fovea show OPERATOR` lists them)")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
}

options::Pairs SetArgument::pairs() const {
  options::Pairs result;
  for (const auto& text : texts) {
    try {
      result.push_back(options::split_pair(text));
    } catch (const Error& error) {
      throw Error(std::string("--set ") + error.what());
    }
  }
  return result;
}

int64_t parse_length(const std::string& text, const std::string& flag) {
  std::string digits = text;
  int64_t unit = 1;
  if (!digits.empty() && (digits.back() == 'k' || digits.back() == 'K')) unit = 1024;
  if (!digits.empty() && (digits.back() == 'm' || digits.back() == 'M')) unit = 1024 * 1024;
  if (unit > 1) digits.pop_back();
  int64_t value = 0;
  try {
    options::parse(digits, flag, value);
  } catch (const Error&) {
    throw Error(flag + " expects a positive integer (k and m are units of 1024 and 1024^2), got '" + text +
                "'");
  }
  constexpr int64_t kLargest = int64_t{1} << 32;
  require(value >= 1 && value <= kLargest / unit, flag, " = ", text, " is outside its range [1, 2^32]");
  return value * unit;
}

std::vector<int64_t> parse_lengths(const std::string& text, const std::string& flag) {
  std::vector<int64_t> lengths;
  for (size_t start = 0; start <= text.size();) {
    const size_t end = std::min(text.find(',', start), text.size());
    lengths.push_back(parse_length(text.substr(start, end - start), flag));
    start = end + 1;
  }
  return lengths;
}

std::pair<int64_t, int64_t> parse_pair(const std::string& text, const std::string& flag) {
  const size_t slash = text.find('/');
  const int64_t first = parse_length(text.substr(0, slash), flag);
  return {first, slash == std::string::npos ? first : parse_length(text.substr(slash + 1), flag)};
}

std::vector<std::string> available_devices() { return {"cpu"}; }

}  // namespace fovea::cli
