// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/generate.h"

#include "fovea/core/error.h"

namespace fovea::model {
namespace {

double rate(int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
}

}  // namespace

std::string_view name_of(StopReason reason) {
  switch (reason) {
    case StopReason::end:
      return "end";
    case StopReason::length:
      return "length";
    case StopReason::context:
      return "context";
    case StopReason::caller:
      break;
  }
  return "caller";
}

Generation generate(Session& session, std::span<const int32_t> prompt, int64_t max_tokens,
                    const SamplerOptions& sampler_options, const TextSink& sink, bool ignore_end) {
  require(max_tokens >= 0, "generate: max_tokens = ", max_tokens, " is negative");
  const Tokenizer& tokenizer = session.model().tokenizer();
  Sampler sampler(sampler_options);
  StreamDecoder decoder(tokenizer);
  Generation result;
  std::vector<int32_t> history(prompt.begin(), prompt.end());
  const auto emit = [&](const std::string& piece) {
    result.text += piece;
    return piece.empty() || !sink || sink(piece);
  };

  const SessionTimes before = session.times();
  Tensor logits = session.prefill(prompt);
  while (static_cast<int64_t>(result.tokens.size()) < max_tokens) {
    const int32_t token = sampler.sample(logits.select(0, logits.dim(0) - 1), history);
    history.push_back(token);
    result.tokens.push_back(token);
    if (result.tokens.size() == 1)
      result.stats.first_token_seconds = session.times().prefill_seconds - before.prefill_seconds;
    if (!ignore_end && tokenizer.ends_generation(token)) {
      result.reason = StopReason::end;
      break;
    }
    if (!emit(decoder.push(token))) {
      result.reason = StopReason::caller;
      break;
    }
    if (static_cast<int64_t>(result.tokens.size()) == max_tokens) break;
    if (session.length() == session.context()) {
      result.reason = StopReason::context;
      break;
    }
    logits = session.decode(std::span(&token, 1));
  }
  if (result.reason != StopReason::caller && !emit(decoder.finish())) result.reason = StopReason::caller;

  const SessionTimes after = session.times();
  GenerationStats& stats = result.stats;
  stats.prompt_tokens = static_cast<int64_t>(prompt.size());
  stats.new_tokens = static_cast<int64_t>(result.tokens.size());
  stats.prefill_tokens_per_second = rate(stats.prompt_tokens, after.prefill_seconds - before.prefill_seconds);
  stats.decode_tokens_per_second =
      rate(after.decode_tokens - before.decode_tokens, after.decode_seconds - before.decode_seconds);
  stats.kv_bytes = session.kv_bytes();
  return result;
}

}  // namespace fovea::model
