// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "fovea/core/options.h"

namespace fovea::model {

/// DuoAttention: retrieval heads keep everything, streaming heads keep sinks and a window. Xiao et al. 2024,
/// arXiv 2410.10819.
struct DuoHeadsOptions {
  double sparsity = 0.5;
  int64_t sink = 64;
  int64_t recent = 256;
  std::string gates;

  static constexpr auto fields() {
    using O = DuoHeadsOptions;
    return options::list(
        options::field(&O::sparsity, "sparsity", "share of kv heads that stream", options::between(0, 1)),
        options::field(&O::sink, "sink", "first tokens kept by streaming heads", options::at_least(0)),
        options::field(&O::recent, "recent", "window of streaming heads, own token included",
                       options::at_least(1)),
        options::field(&O::gates, "gates", "safetensors or npy file with alpha [L,Hkv]"));
  }
};

/// How a recipe reaches a mechanism that divides the heads into classes.
struct HeadPolicyEntry {
  std::string name;
  int paper = 0;
  std::string summary;
  std::vector<options::Info> options;
};

/// All of them, an explicit list in head_policies.cc.
const std::vector<HeadPolicyEntry>& head_policies();
/// nullptr when there is none of that name.
const HeadPolicyEntry* find_head_policy(std::string_view name);

}  // namespace fovea::model
