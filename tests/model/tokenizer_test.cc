// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/tokenizer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "fovea/core/error.h"
#include "io/message_of.h"
#include "io/scratch.h"
#include "model/small_vocabulary.h"

namespace fovea::model {
namespace {

using Ids = std::vector<int32_t>;
using io::message_of;

// Ids of the small byte-level vocabulary.
constexpr int32_t kHe = 256, kHello = 259, kSpaceHello = 260, kTwoSpaces = 261, kTwelve = 262, kTwoA = 263,
                  kFourA = 264, kAb = 265, kStart = 266, kEnd = 267, kTool = 268;

TEST(ByteLevel, MergesByRankFromTheLeft) {
  const Tokenizer tokenizer = small_byte_level();
  EXPECT_EQ(tokenizer.encode("hello", false, false), (Ids{kHello}));
  EXPECT_EQ(tokenizer.encode("he hello", false, false), (Ids{kHe, kSpaceHello}));
  EXPECT_EQ(tokenizer.encode("aaaaa", false, false), (Ids{kFourA, 'a'}));
  // "a a" has the lower rank, so the b is left alone after an even run.
  EXPECT_EQ(tokenizer.encode("aab", false, false), (Ids{kTwoA, 'b'}));
  EXPECT_EQ(tokenizer.encode("aaab", false, false), (Ids{kTwoA, kAb}));
  EXPECT_EQ(tokenizer.encode("", true, true), Ids{});
}

TEST(ByteLevel, DropsABytesThatTheVocabularyLacks) {
  EXPECT_EQ(small_byte_level().encode("a\x04z", false, false), (Ids{'a', 'z'}));
}

TEST(ByteLevel, PreTokenizersDecideWhatMayMerge) {
  EXPECT_EQ(small_byte_level("gpt-2").encode("12", false, false), (Ids{kTwelve}));
  EXPECT_EQ(small_byte_level("llama-bpe").encode("12", true, false), (Ids{kStart, kTwelve}));
  for (const char* single : {"smollm", "qwen2"})
    EXPECT_EQ(small_byte_level(single).encode("12", false, false), (Ids{'1', '2'})) << single;
  EXPECT_EQ(small_byte_level("default").encode("12", false, false), (Ids{kTwelve}));
  // The last space of a run belongs to the word behind it.
  EXPECT_EQ(small_byte_level().encode("   x", false, false), (Ids{kTwoSpaces, ' ', 'x'}));
  EXPECT_EQ(small_byte_level().encode("x   ", false, false), (Ids{'x', kTwoSpaces, ' '}));
}

TEST(ByteLevel, SpecialTokensAreCutOutFirst) {
  const Tokenizer tokenizer = small_byte_level();
  EXPECT_EQ(tokenizer.encode("a<|im_start|>b<|im_end|>", false, true), (Ids{'a', kStart, 'b', kEnd}));
  EXPECT_EQ(tokenizer.encode("<|im_end|>", false, false).size(), 10u) << "text that a user typed stays text";
  EXPECT_EQ(tokenizer.encode("a<tool>b", false, false), (Ids{'a', kTool, 'b'}))
      << "user defined tokens always count";
  EXPECT_EQ(tokenizer.encode("<|im_start|", false, true).size(), 11u);
  EXPECT_TRUE(tokenizer.is_special(kStart));
  EXPECT_FALSE(tokenizer.is_special(kTool));
  EXPECT_TRUE(tokenizer.ends_generation(kEnd));
  EXPECT_FALSE(tokenizer.ends_generation(kStart));
}

TEST(ByteLevel, InvalidUtf8BecomesReplacementCharacters) {
  const Tokenizer tokenizer = small_byte_level();
  const auto decoded = [&](std::string_view text) {
    return tokenizer.decode(tokenizer.encode(text, false, false));
  };
  EXPECT_EQ(decoded("a\xff"
                    "b"),
            "a\xef\xbf\xbd"
            "b");
  EXPECT_EQ(decoded("\xe2\x82"), "\xef\xbf\xbd\xef\xbf\xbd");
  EXPECT_EQ(decoded(std::string_view("\xc0\x80\0", 3)), std::string(2, '\0'))
      << "an over-long form is what it stands for";
  EXPECT_EQ(decoded("\xed\xa0\x80"), "\xed\xa0\x80") << "surrogates pass";
  EXPECT_EQ(decoded("\xf4\x90\x80\x80"), "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd")
      << "beyond U+10FFFF";
}

TEST(ByteLevel, DecodeGivesTheBytesBack) {
  const Tokenizer tokenizer = small_byte_level();
  const std::string text = "hello  12 it's\r\n\t\xe6\x97\xa5\xe6\x9c\xac \xf0\x9f\x91\x8d\xcc\x81<tool>";
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, false, true)), text);
  EXPECT_EQ(tokenizer.decode(Ids{kStart, 'a', kEnd}), "<|im_start|>a<|im_end|>");
  EXPECT_EQ(tokenizer.decode(Ids{kStart, 'a', kEnd}, true), "a");
}

TEST(ByteLevel, KnowsItsVocabulary) {
  const Tokenizer tokenizer = small_byte_level();
  EXPECT_EQ(tokenizer.vocabulary_size(), 269);
  EXPECT_EQ(tokenizer.bos(), kStart);
  EXPECT_EQ(tokenizer.eos(), kEnd);
  EXPECT_EQ(tokenizer.token_id("<|im_end|>"), kEnd);
  EXPECT_EQ(tokenizer.token_id("nothing"), std::nullopt);
  EXPECT_EQ(tokenizer.token_text(kSpaceHello), "\xc4\xa0hello");
  EXPECT_THROW(tokenizer.token_text(269), Error);
  EXPECT_THROW(tokenizer.decode(Ids{-1}), Error);
}

TEST(ByteLevel, VeryLongWordsTakeLinearithmicTime) {
  const Tokenizer tokenizer = small_byte_level();
  std::string word;
  for (int i = 0; i < 1'000'000; ++i) word += "helloab"[(i * 7 + i / 3) % 7];
  const auto start = std::chrono::steady_clock::now();
  const Ids ids = tokenizer.encode(word, false, false);
  const Ids run = tokenizer.encode(std::string(1'000'000, 'a'), false, false);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(tokenizer.decode(ids), word);
  EXPECT_EQ(run, Ids(250'000, kFourA));
  EXPECT_LT(seconds.count(), 60) << "a quadratic merge would take hours";
}

TEST(StreamDecoder, HoldsBackIncompleteCharacters) {
  const Tokenizer tokenizer = small_byte_level();
  const std::string emoji = "\xf0\x9f\x91\x8d";
  const Ids ids = tokenizer.encode(emoji + "a", false, false);
  ASSERT_EQ(ids.size(), 5u);
  StreamDecoder stream(tokenizer);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(stream.push(ids[static_cast<size_t>(i)]), "");
  EXPECT_EQ(stream.push(ids[3]), emoji);
  EXPECT_EQ(stream.push(ids[4]), "a");
  EXPECT_EQ(stream.push(kEnd), "") << "control tokens are not text";
  EXPECT_EQ(stream.push(ids[0]), "");
  EXPECT_EQ(stream.finish(), "\xf0");
  EXPECT_EQ(stream.finish(), "");
}

TEST(StreamDecoder, PassesBytesThatStartNoCharacter) {
  StreamDecoder stream(small_byte_level());
  EXPECT_EQ(stream.push(0xff), "\xff");
  EXPECT_EQ(stream.push(0x80), "\x80");
}

// Ids of the small SentencePiece vocabulary.
constexpr int32_t kPieces = 259;

TEST(SentencePiece, MergesByScoreWithASpaceBeforeTheText) {
  const Tokenizer tokenizer = small_sentencepiece();
  // "he" scores above "ll" and both above "_he"; "_hello" is reached through "_he" + "llo".
  EXPECT_EQ(tokenizer.encode("hello", true, false), (Ids{1, kPieces + 9}));
  EXPECT_EQ(tokenizer.encode("he he", false, false), (Ids{kPieces + 7, kPieces + 7}));
  EXPECT_EQ(tokenizer.encode("", true, false), (Ids{1}));
}

TEST(SentencePiece, SpellsUnknownCharactersByBytes) {
  const Tokenizer tokenizer = small_sentencepiece();
  EXPECT_EQ(tokenizer.encode("h\xc3\xa9x", false, false), (Ids{kPieces, kPieces + 1, kPieces + 10, 3 + 'x'}));
  EXPECT_EQ(tokenizer.encode("\xe6\x97\xa5", false, false), (Ids{kPieces, 3 + 0xe6, 3 + 0x97, 3 + 0xa5}));
  EXPECT_EQ(tokenizer.encode("\xff", false, false), (Ids{kPieces, 3 + 0xff}));
}

TEST(SentencePiece, DecodeUndoesTheSpaceAndTheBytes) {
  const Tokenizer tokenizer = small_sentencepiece();
  for (const std::string text : {"hello he", " hello", "x\n\xe6\x97\xa5", "", "  "})
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, true, false), true), text);
  EXPECT_EQ(tokenizer.piece(kPieces + 9), " hello");
  EXPECT_EQ(tokenizer.encode("he</s>he", false, true), (Ids{kPieces + 7, 2, kPieces + 7}));
}

TEST(FromGguf, RefusesWhatItCannotUse) {
  const auto message = [](const std::function<void(io::GgufBuilder&)>& build) {
    io::GgufBuilder builder;
    build(builder);
    return message_of([&] { Tokenizer::from_gguf(builder.parse()); });
  };
  const auto expect = [&](const char* part, const std::function<void(io::GgufBuilder&)>& build) {
    EXPECT_NE(message(build).find(part), std::string::npos) << message(build);
  };
  const std::vector<std::string> tokens = {"a", "b"};
  const auto base = [&](io::GgufBuilder& b, uint64_t more) -> io::GgufBuilder& {
    return b.head(0, 2 + more).entry("tokenizer.ggml.model", "gpt2").entry("tokenizer.ggml.tokens", tokens);
  };
  expect("'tokenizer.ggml.model' is missing", [](auto& b) { b.head(0, 0); });
  expect("model 'bert' is not supported",
         [](auto& b) { b.head(0, 1).entry("tokenizer.ggml.model", "bert"); });
  expect("vocabulary is empty", [](auto& b) { b.head(0, 1).entry("tokenizer.ggml.model", "gpt2"); });
  expect("pre-tokenizer 'other' is not supported",
         [&](auto& b) { base(b, 1).entry("tokenizer.ggml.pre", "other"); });
  expect("merge rule 0",
         [&](auto& b) { base(b, 1).entry("tokenizer.ggml.merges", std::vector<std::string>{"ab"}); });
  expect("end token 2 is outside", [&](auto& b) { base(b, 1).entry("tokenizer.ggml.eos_token_id", 2u); });
  expect("no token id", [&](auto& b) { base(b, 1).entry("tokenizer.ggml.bos_token_id", ~0u); });
  expect("2 tokens but 1 token types",
         [&](auto& b) { base(b, 1).entry("tokenizer.ggml.token_type", 5, std::vector<int32_t>{1}); });
  expect("token type 9", [&](auto& b) {
    base(b, 1).entry("tokenizer.ggml.token_type", 5, std::vector<int32_t>{1, 9});
  });
  expect("does not hold an array", [&](auto& b) {
    base(b, 1).entry("tokenizer.ggml.token_type", 6, std::vector<float>{1, 1});
  });
  expect("2 tokens but 0 scores", [&](auto& b) {
    b.head(0, 2).entry("tokenizer.ggml.model", "llama").entry("tokenizer.ggml.tokens", tokens);
  });
}

// The texts and ids of tests/fixtures/tokenizer.py.
TEST(Smollm2, EncodesAsLlamaCppDoes) {
  const char* path = std::getenv("FOVEA_TEST_MODEL");
  if (path == nullptr || *path == '\0')
    GTEST_SKIP() << "set FOVEA_TEST_MODEL to SmolLM2-135M-Instruct.Q4_1.gguf to run this test";
  const Tokenizer tokenizer = Tokenizer::from_gguf(io::GgufFile::read(path));
  std::ifstream file(std::string(FOVEA_SOURCE_DIR) + "/tests/model/data/tokenizer_smollm2.json");
  const auto cases = nlohmann::json::parse(file);
  ASSERT_GT(cases.size(), 150u);
  const auto decoded = [](const std::string& base64) {
    constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string out;
    uint32_t bits = 0, held = 0;
    for (const char c : base64) {
      if (c == '=') break;
      bits = bits << 6 | static_cast<uint32_t>(kDigits.find(c));
      held += 6;
      if (held >= 8) out += static_cast<char>(bits >> (held -= 8));
    }
    return out;
  };
  for (const auto& item : cases) {
    const auto text = decoded(item.at("text").get<std::string>());
    EXPECT_EQ(
        tokenizer.encode(text, item.at("add_special").get<bool>(), item.at("parse_special").get<bool>()),
        item.at("ids").get<Ids>())
        << item.at("text") << " " << testing::PrintToString(text);
  }
}

}  // namespace
}  // namespace fovea::model
