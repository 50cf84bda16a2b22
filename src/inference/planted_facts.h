// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fovea/model/tokenizer.h"

namespace fovea::inference {

/// A sentence that a text does not otherwise contain, and the question it answers.
struct PlantedFact {
  std::string sentence;  ///< goes into the text
  std::string question;  ///< goes after it; the model completes it
  std::string answer;
};

/// Up to 12 facts, the same for every call: a named place has a secret word.
std::vector<PlantedFact> planted_facts(int64_t count);

/// A text of exactly `tokens` tokens into which the facts are planted at even depths, at ends of sentences.
struct PlantedText {
  std::vector<int32_t> tokens;
  std::vector<PlantedFact> facts;
  std::vector<double> depths;
};

/// `text` is repeated from its start where it is too short. Throws Error for an empty text or too few tokens
/// for the facts.
PlantedText plant_facts(const model::Tokenizer& tokenizer, const std::string& text, int64_t tokens,
                        int64_t facts);

}  // namespace fovea::inference
