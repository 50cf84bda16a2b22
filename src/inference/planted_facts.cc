// SPDX-License-Identifier: Apache-2.0
#include "fovea/inference/planted_facts.h"

#include <algorithm>
#include <array>
#include <span>

#include "fovea/core/error.h"

namespace fovea::inference {
namespace {

struct Fact {
  const char* thing;
  const char* word;
};
constexpr std::array<Fact, 12> kFacts = {{{"the north store", "copper"},
                                          {"the ferry house", "lantern"},
                                          {"the old chapel", "walnut"},
                                          {"the bell tower", "harvest"},
                                          {"the salt cellar", "silver"},
                                          {"the boat shed", "thunder"},
                                          {"the grain loft", "velvet"},
                                          {"the lamp room", "orchard"},
                                          {"the east gate", "marble"},
                                          {"the ice house", "falcon"},
                                          {"the school attic", "ginger"},
                                          {"the harbour office", "meadow"}}};

// The first end of a sentence at or after `at`: the byte after its full stop and space.
size_t sentence_end(const std::string& text, size_t at) {
  const size_t stop = text.find(". ", at);
  return stop == std::string::npos ? text.size() : stop + 2;
}

}  // namespace

std::vector<PlantedFact> planted_facts(int64_t count) {
  require(count >= 0 && count <= static_cast<int64_t>(kFacts.size()), "there are ", kFacts.size(),
          " facts to plant, not ", count);
  std::vector<PlantedFact> facts;
  for (const auto& [thing, word] : std::span(kFacts).first(static_cast<size_t>(count))) {
    const std::string statement = std::string("he secret word of ") + thing + " is ";
    facts.push_back({"T" + statement + word + ". Remember: t" + statement + word + ". ",
                     "\n\nThe secret word of " + std::string(thing) + " is", word});
  }
  return facts;
}

PlantedText plant_facts(const model::Tokenizer& tokenizer, const std::string& text, int64_t tokens,
                        int64_t count) {
  require(!text.empty(), "compare: the text is empty");
  PlantedText planted;
  planted.facts = planted_facts(count);
  // Long enough for the tokens that are wanted, measured on the text itself, then cut to the token.
  const auto whole = static_cast<double>(tokenizer.encode(text, true, false).size());
  const double needed = static_cast<double>(tokens) / whole * static_cast<double>(text.size()) * 1.02 + 256;
  std::string body;
  while (static_cast<double>(body.size()) < needed) body += text;
  body.resize(static_cast<size_t>(needed));
  size_t shift = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double depth = (static_cast<double>(i) + 0.5) / static_cast<double>(count);
    const size_t wanted =
        static_cast<size_t>(depth * static_cast<double>(tokens) / whole * static_cast<double>(text.size()));
    const size_t at = sentence_end(body, std::min(wanted + shift, body.size()));
    const std::string& sentence = planted.facts[static_cast<size_t>(i)].sentence;
    body.insert(at, sentence);
    shift += sentence.size();
    planted.depths.push_back(depth);
  }
  planted.tokens = tokenizer.encode(body, true, false);
  require(static_cast<int64_t>(planted.tokens.size()) >= tokens, "compare: the text gave ",
          planted.tokens.size(), " tokens where ", tokens, " are needed");
  planted.tokens.resize(static_cast<size_t>(tokens));
  return planted;
}

}  // namespace fovea::inference
