// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fovea/core/options.h"
#include "fovea/inference/attention_map.h"
#include "fovea/model/model.h"
#include "fovea/model/recipe.h"

/// What recipes cost and what they change on a real model, measured against exact attention on the same text.
namespace fovea::inference {

struct CompareOptions {
  std::vector<int64_t> lengths = {8192};
  int64_t decoded = 256;
  int64_t facts = 5;
  int64_t map_size = 96;

  static constexpr auto fields() {
    using O = CompareOptions;
    return options::list(
        options::field(&O::lengths, "lengths", "tokens of text, questions included; one table for each",
                       options::at_least(256)),
        options::field(&O::decoded, "decoded",
                       "last tokens of the text, decoded one by one, on which distributions are compared",
                       options::at_least(1)),
        options::field(&O::facts, "facts",
                       "facts planted at even depths of the text and asked for at the end",
                       options::between(0, 12)),
        options::field(&O::map_size, "map_size", "cells a side of the attention maps; 0: none",
                       options::between(0, 512)));
  }
};

/// One planted fact and what the model said when asked for it.
struct FactAnswer {
  double depth = 0;  ///< 0 beginning, 1 end of the text
  std::string question, expected, answer;
  bool correct = false;
};

/// One recipe at one length. KL, agreement and perplexity are means over the decoded tokens; the text decides
/// the tokens, whatever the model would have said.
struct RecipeMeasurement {
  std::string recipe;  ///< canonical
  int64_t length = 0, prompt_tokens = 0, decoded_tokens = 0;
  double first_token_seconds = 0;  ///< prefill of the prompt
  double prefill_tokens_per_second = 0;
  double decode_tokens_per_second = 0;
  int64_t kv_bytes = 0;    ///< held at the end of the text
  int64_t read_bytes = 0;  ///< of keys, values and their metadata, by the last decode step
  double density = 1;      ///< visible over causal pairs of the prefill plan, mean over layers and heads
  double recall = 1;       ///< exact attention probability on the plan's keys, likewise
  double kl = 0;           ///< KL(exact || recipe) of the next token, nats
  double agreement = 1;    ///< share of tokens whose most likely next token is the exact one's
  double perplexity = 0;
  std::vector<FactAnswer> answers;
  int64_t facts_found() const;
};

struct Comparison {
  std::vector<RecipeMeasurement>
      rows;            ///< by length, then in the order of the recipes; exact attention is always first
  AttentionMaps maps;  ///< at the longest length
};

/// Called before each piece of work with what comes next and the share that is done.
using CompareProgress = std::function<void(const std::string& what, double done)>;

/// Runs every recipe over `text` (repeated from its start where a length needs more). Exact attention is
/// added when `recipes` lacks it. Throws Error for a length beyond the model's context, an empty text, or a
/// recipe the model cannot run.
Comparison compare(const std::shared_ptr<const model::Model>& model, const std::string& text,
                   const std::vector<model::Recipe>& recipes, const CompareOptions& options = {},
                   const CompareProgress& progress = {});

}  // namespace fovea::inference
