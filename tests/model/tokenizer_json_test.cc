// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "fovea/core/error.h"
#include "fovea/model/tokenizer.h"
#include "fovea/model/unicode.h"
#include "io/message_of.h"
#include "io/scratch.h"

namespace fovea::model {
namespace {

using Ids = std::vector<int32_t>;
using Json = nlohmann::json;

// Byte-level: the 256 bytes, then "ab" = 256, "12" = 257; <s> = 258 (special), strip = 259 (swallows spaces).
Json byte_level_json() {
  Json vocabulary = {{"ab", 256}, {"12", 257}};
  for (int byte = 0; byte < 256; ++byte) vocabulary[byte_spelling(static_cast<uint8_t>(byte))] = byte;
  return {{"added_tokens",
           {{{"id", 258}, {"content", "<s>"}, {"special", true}},
            {{"id", 259}, {"content", "strip"}, {"special", false}, {"lstrip", true}, {"rstrip", true}}}},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
          {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", {"a b", "1 2"}}}}};
}

Tokenizer load(const Json& root, const Json& config = nullptr) {
  const io::Scratch scratch;
  std::ofstream(scratch / "tokenizer.json") << root;
  if (config.is_null()) return Tokenizer::from_json(scratch / "tokenizer.json");
  std::ofstream(scratch / "config.json") << config;
  return Tokenizer::from_json(scratch / "tokenizer.json", scratch / "config.json");
}

TEST(TokenizerJson, ReadsMergesInBothForms) {
  Json root = byte_level_json();
  EXPECT_EQ(load(root).encode("ab12", false, false), (Ids{256, 257}));
  root["model"]["merges"] = Json::array({Json::array({"a", "b"}), Json::array({"1", "2"})});
  EXPECT_EQ(load(root).encode("ab12", false, false), (Ids{256, 257}));
}

TEST(TokenizerJson, MapsPreTokenizersToStages) {
  Json root = byte_level_json();
  const Json bytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  const auto with = [&](const Json& first) {
    root["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {first, bytes}}};
    return load(root).encode("ab12", false, false);
  };
  EXPECT_EQ(with({{"type", "Digits"}, {"individual_digits", true}}), (Ids{256, '1', '2'}));
  EXPECT_EQ(with({{"type", "Digits"}, {"individual_digits", false}}), (Ids{256, 257}));
  const auto split = [](const char* kind, const char* pattern, const char* behaviour, bool invert) {
    return Json{
        {"type", "Split"}, {"pattern", {{kind, pattern}}}, {"behavior", behaviour}, {"invert", invert}};
  };
  EXPECT_EQ(with(split("Regex", "a|1", "Isolated", false)), (Ids{'a', 'b', '1', '2'}));
  EXPECT_EQ(with(split("Regex", "\\p{N}+", "Removed", true)), (Ids{257}));
  EXPECT_EQ(with(split("String", "b1", "Removed", false)), (Ids{'a', '2'}));
  EXPECT_EQ(with(split("String", ".", "Isolated", false)), (Ids{256, 257})) << "a literal dot";
}

TEST(TokenizerJson, AddsASpaceBeforeTheTextWhereAsked) {
  Json root = byte_level_json();
  root["pre_tokenizer"]["add_prefix_space"] = true;
  const Tokenizer tokenizer = load(root);
  EXPECT_EQ(tokenizer.encode("ab", false, false), (Ids{' ', 256}));
  EXPECT_EQ(tokenizer.encode(" ab", false, false), (Ids{' ', 256}));
}

TEST(TokenizerJson, AddedTokensMaySwallowSpaces) {
  EXPECT_EQ(load(byte_level_json()).encode("a \tstrip\n b", false, false), (Ids{'a', 259, 'b'}));
}

TEST(TokenizerJson, TakesBeginAndEndFromTemplateOrConfig) {
  Json root = byte_level_json();
  EXPECT_EQ(load(root).bos(), -1);
  root["post_processor"] = {{"type", "TemplateProcessing"},
                            {"single", {{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}}};
  EXPECT_EQ(load(root).encode("ab", true, false), (Ids{258, 256}));
  root.erase("post_processor");
  const Tokenizer tokenizer =
      load(root, {{"bos_token", {{"content", "<s>"}}}, {"eos_token", "<s>"}, {"add_eos_token", true}});
  EXPECT_EQ(tokenizer.bos(), 258);
  EXPECT_TRUE(tokenizer.ends_generation(258));
  EXPECT_EQ(tokenizer.encode("ab", true, false), (Ids{256, 258}));
}

TEST(TokenizerJson, ReadsSentencePieceVocabularies) {
  const std::string mark = "\xe2\x96\x81";
  Json root = {
      {"normalizer",
       {{"type", "Sequence"},
        {"normalizers",
         {{{"type", "Prepend"}, {"prepend", mark}},
          {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", mark}}}}}},
      {"model",
       {{"type", "BPE"},
        {"byte_fallback", true},
        {"unk_token", "<unk>"},
        {"vocab",
         {{"<unk>", 0}, {"<0x7A>", 1}, {mark, 2}, {"a", 3}, {"b", 4}, {mark + "a", 5}, {mark + "ab", 6}}},
        {"merges", {mark + " a", mark + "a b"}}}}};
  const Tokenizer tokenizer = load(root);
  EXPECT_EQ(tokenizer.encode("ab a", false, false), (Ids{6, 5}));
  EXPECT_EQ(tokenizer.encode("z", false, false), (Ids{2, 1}));
  EXPECT_EQ(tokenizer.encode("y", false, false), (Ids{2, 0})) << "no byte token: unknown";
  EXPECT_EQ(tokenizer.decode(Ids{6, 5, 1}), "ab az");
  root.erase("normalizer");
  root["pre_tokenizer"] = {
      {"type", "Metaspace"}, {"replacement", mark}, {"prepend_scheme", "never"}, {"split", false}};
  EXPECT_EQ(load(root).encode("ab a", false, false), (Ids{3, 4, 5}));
}

struct Hostile {
  const char* name;
  std::function<void(Json&)> change;
  const char* message;
};

class TokenizerJsonHostile : public testing::TestWithParam<Hostile> {};

TEST_P(TokenizerJsonHostile, IsRefusedWithItsReason) {
  Json root = byte_level_json();
  GetParam().change(root);
  const std::string message = io::message_of([&] { load(root); });
  EXPECT_NE(message.find(GetParam().message), std::string::npos) << message;
  EXPECT_NE(message.find("tokenizer.json"), std::string::npos) << message;
}

const Hostile kHostile[] = {
    {"NoModel", [](Json& j) { j.erase("model"); }, "key 'model' not found"},
    {"NotAnObject", [](Json& j) { j = Json::array({1}); }, "not a usable tokenizer file"},
    {"OtherModel", [](Json& j) { j["model"]["type"] = "Unigram"; }, "model 'Unigram'"},
    {"ModelIsText", [](Json& j) { j["model"] = "BPE"; }, "not a usable"},
    {"OtherPreTokenizer", [](Json& j) { j["pre_tokenizer"]["type"] = "BertPreTokenizer"; },
     "'BertPreTokenizer'"},
    {"OtherNormalizer",
     [](Json& j) {
       j["normalizer"] = {{"type", "Lowercase"}};
     },
     "'Lowercase'"},
    {"OtherPostProcessor",
     [](Json& j) {
       j["post_processor"] = {{"type", "BertProcessing"}};
     },
     "'BertProcessing'"},
    {"NestedSequence",
     [](Json& j) {
       const Json inner = {{"type", "Sequence"}, {"pretokenizers", Json::array()}};
       j["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {inner}}};
     },
     "'Sequence'"},
    {"OtherBehaviour",
     [](Json& j) {
       j["pre_tokenizer"] = {
           {"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "MergedWithNext"}};
     },
     "'MergedWithNext'"},
    {"SplitWithoutByteLevel",
     [](Json& j) {
       j["pre_tokenizer"] = {{"type", "Digits"}, {"individual_digits", true}};
     },
     "without a ByteLevel"},
    {"BadExpression",
     [](Json& j) {
       const Json split = {{"type", "Split"}, {"pattern", {{"Regex", "(a"}}}, {"behavior", "Isolated"}};
       j["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {split, j["pre_tokenizer"]}}};
     },
     "does not compile"},
    {"NegativeId", [](Json& j) { j["model"]["vocab"]["x"] = -5; }, "has the id -5"},
    {"HugeId", [](Json& j) { j["model"]["vocab"]["xx"] = int64_t{1} << 40; }, "'xx' has the id"},
    {"IdIsText", [](Json& j) { j["model"]["vocab"]["x"] = "5"; }, "not a usable"},
    {"EmptyVocabulary",
     [](Json& j) {
       j["model"]["vocab"] = Json::object();
       j["added_tokens"] = Json::array();
     },
     "vocabulary is empty"},
    {"MergeOfThree",
     [](Json& j) {
       j["model"]["merges"] = {{"a", "b", "c"}};
     },
     "two parts"},
    {"MergeOfOne", [](Json& j) { j["model"]["merges"] = {"ab"}; }, "two parts"},
    {"UnknownTokenMissing", [](Json& j) { j["model"]["unk_token"] = "<none>"; }, "lacks the token '<none>'"},
    {"WordSuffix", [](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }, "end_of_word_suffix"},
};

INSTANTIATE_TEST_SUITE_P(Files, TokenizerJsonHostile, testing::ValuesIn(kHostile),
                         [](const auto& instance) { return std::string(instance.param.name); });

TEST(TokenizerJson, AnExpressionThatNeverEndsIsStopped) {
  Json root = byte_level_json();
  const Json split = {{"type", "Split"}, {"pattern", {{"Regex", "(a+a+)+$"}}}, {"behavior", "Isolated"}};
  root["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {split, root["pre_tokenizer"]}}};
  const Tokenizer tokenizer = load(root);
  const std::string text = std::string(60, 'a') + "b";
  EXPECT_NE(io::message_of([&] { tokenizer.encode(text, false, false); }).find("cannot split the text"),
            std::string::npos);
}

}  // namespace
}  // namespace fovea::model
