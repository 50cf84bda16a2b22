// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/config.h"

#include <gtest/gtest.h>

#include "fovea/core/error.h"
#include "tests/model/tiny_model.h"

namespace fovea::model {
namespace {

/// A config.json with one piece of text replaced.
std::string changed(const std::string& from, const std::string& to) {
  std::string text = tiny::config_json(tiny::make({}));
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

std::string message_of(const std::string& json) {
  try {
    ModelConfig::from_json(json, "config.json");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(ModelConfig, ReadsAConfigJson) {
  const ModelConfig config = ModelConfig::from_json(tiny::config_json(tiny::make({})), "config.json");
  EXPECT_EQ(config.architecture, "llama");
  EXPECT_EQ(config.layers, 2);
  EXPECT_EQ(config.embedding, 32);
  EXPECT_EQ(config.feed_forward, 48);
  EXPECT_EQ(config.heads_q, 4);
  EXPECT_EQ(config.heads_kv, 2);
  EXPECT_EQ(config.dim, 8);
  EXPECT_EQ(config.vocabulary, 257);
  EXPECT_EQ(config.context, 2048);
  EXPECT_EQ(config.rope_scaling.kind, RopeScaling::Kind::none);
}

TEST(ModelConfig, MistralIsLlamaAndItsWindowCapsTheContext) {
  const std::string text = changed("\"llama\"", "\"mistral\",\"sliding_window\":512");
  const ModelConfig config = ModelConfig::from_json(text, "config.json");
  EXPECT_EQ(config.architecture, "llama");
  EXPECT_EQ(config.context, 512);
}

TEST(ModelConfig, AWindowThatIsSwitchedOffCapsNothing) {
  const std::string text =
      changed("\"llama\"", "\"qwen2\",\"sliding_window\":512,\"use_sliding_window\":false");
  EXPECT_EQ(ModelConfig::from_json(text, "config.json").context, 2048);
}

TEST(ModelConfig, HeadWidthDefaultsToTheEmbeddingOverTheHeads) {
  EXPECT_EQ(ModelConfig::from_json(changed(",\"head_dim\":8", ""), "config.json").dim, 8);
}

TEST(ModelConfig, ReadsRopeScalingInBothSpellings) {
  const std::string scaling =
      R"({"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,)"
      R"("original_max_position_embeddings":512})";
  ModelConfig config =
      ModelConfig::from_json(changed("\"rope_scaling\":null", "\"rope_scaling\":" + scaling), "config.json");
  EXPECT_EQ(config.rope_scaling.kind, RopeScaling::Kind::llama3);
  EXPECT_EQ(config.rope_scaling.factor, 8);
  EXPECT_EQ(config.rope_scaling.original_context, 512);
  config = ModelConfig::from_json(
      changed("\"rope_scaling\":null", R"("rope_parameters":{"rope_type":"default","rope_theta":5e5})"),
      "config.json");
  EXPECT_EQ(config.rope_scaling.kind, RopeScaling::Kind::none);
  EXPECT_EQ(config.rope_theta, 5e5);
}

TEST(ModelConfig, RefusalsNameTheFileAndTheTrouble) {
  EXPECT_NE(message_of("{"), "");
  EXPECT_NE(message_of("[1]").find("config.json"), std::string::npos);
  EXPECT_NE(message_of(changed("\"llama\"", "\"gemma\"")).find("'gemma'"), std::string::npos);
  EXPECT_NE(message_of(changed("\"hidden_size\":32,", "")).find("'hidden_size'"), std::string::npos);
  EXPECT_NE(message_of(changed("\"hidden_size\":32", "\"hidden_size\":\"32\"")).find("integer"),
            std::string::npos);
  EXPECT_NE(message_of(changed("\"silu\"", "\"gelu\"")).find("'gelu'"), std::string::npos);
  EXPECT_NE(message_of(changed("\"rope_scaling\":null", R"("rope_scaling":{"type":"longrope"})"))
                .find("'longrope'"),
            std::string::npos);
}

TEST(ModelConfig, RefusesAbsurdSizes) {
  for (const auto& [from, to] : std::vector<std::pair<std::string, std::string>>{
           {"\"num_hidden_layers\":2", "\"num_hidden_layers\":1000000"},
           {"\"num_hidden_layers\":2", "\"num_hidden_layers\":0"},
           {"\"num_attention_heads\":4", "\"num_attention_heads\":0"},
           {"\"num_attention_heads\":4", "\"num_attention_heads\":5"},
           {"\"num_key_value_heads\":2", "\"num_key_value_heads\":-2"},
           {"\"head_dim\":8", "\"head_dim\":7"},
           {"\"head_dim\":8", "\"head_dim\":18446744073709551615"},
           {"\"vocab_size\":257", "\"vocab_size\":-1"},
           {"\"rms_norm_eps\":1e-5", "\"rms_norm_eps\":-1"},
           {"\"rope_theta\":10000.0", "\"rope_theta\":0"},
           {"\"max_position_embeddings\":2048", "\"max_position_embeddings\":0"}})
    EXPECT_NE(message_of(changed(from, to)), "") << to;
}

}  // namespace
}  // namespace fovea::model
