// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fovea/model/sampler.h"
#include "fovea/model/session.h"

namespace fovea::model {

enum class StopReason {
  end,      ///< the model ended its text or its turn
  length,   ///< as many tokens as were asked for
  context,  ///< the session's context is full
  caller    ///< the callback said so
};

/// "end", "length", "context", "caller"
std::string_view name_of(StopReason reason);

struct GenerationStats {
  int64_t prompt_tokens = 0, new_tokens = 0;
  double first_token_seconds = 0;  ///< from the call to the first token
  double prefill_tokens_per_second = 0;
  double decode_tokens_per_second = 0;  ///< of the tokens after the first
  int64_t kv_bytes = 0;                 ///< at the end
};

struct Generation {
  std::string text;             ///< of the new tokens, control tokens left out
  std::vector<int32_t> tokens;  ///< all that was drawn, an ending token included
  StopReason reason = StopReason::length;
  GenerationStats stats;
};

/// Receives text as soon as it is whole characters; false ends the generation.
using TextSink = std::function<bool(std::string_view piece)>;

/// Continues `prompt` by at most `max_tokens` tokens. The session may already hold text before the prompt;
/// afterwards it holds the prompt and all new tokens but the last. `sink` may be empty. `ignore_end` goes on
/// past ending tokens, to measure speed. Throws Error as Session::prefill does.
Generation generate(Session& session, std::span<const int32_t> prompt, int64_t max_tokens,
                    const SamplerOptions& sampler = {}, const TextSink& sink = {}, bool ignore_end = false);

}  // namespace fovea::model
