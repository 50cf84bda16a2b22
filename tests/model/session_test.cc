// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/session.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "fovea/core/error.h"
#include "fovea/core/thread_pool.h"
#include "fovea/model/generate.h"
#include "tests/model/tiny_model.h"

namespace fovea::model {
namespace {

using tiny::TemporaryFolder;
using tiny::TinyModel;
using tiny::Traits;

std::shared_ptr<const Model> load(const TinyModel& model, bool with_tokenizer = false) {
  const TemporaryFolder folder("tiny_model");
  tiny::write_folder(model, folder.path(), with_tokenizer);
  return Model::load(folder.path());
}

double error_of(const Tensor& logits, const std::vector<tiny::Vector>& expected, int64_t first) {
  double difference = 0, total = 0;
  for (int64_t t = 0; t < logits.dim(0); ++t)
    for (int64_t i = 0; i < logits.dim(1); ++i) {
      const double want = expected[static_cast<size_t>(first + t)][static_cast<size_t>(i)];
      difference += std::pow(static_cast<double>(logits.at<float>(t, i)) - want, 2);
      total += want * want;
    }
  return std::sqrt(difference / total);
}

/// Prefill in chunks, then decode, of one model in f32 throughout: all logits.
void expect_reference(const std::shared_ptr<const Model>& loaded, const TinyModel& model) {
  const auto tokens = tiny::random_tokens(45, model.config.vocabulary);
  const auto expected = tiny::reference_logits(model, tokens);
  Session session(loaded, Recipe::parse("cache=f32"), {.chunk = 17});
  const std::span<const int32_t> all(tokens);
  int64_t seen = 0;
  session.prefill(all.first(40), [&](int64_t first, const Tensor& logits) {
    EXPECT_EQ(first, seen);
    seen += logits.dim(0);
    EXPECT_LT(error_of(logits, expected, first), 2e-5) << "rows from " << first;
  });
  EXPECT_EQ(seen, 40);
  EXPECT_LT(error_of(session.decode(all.subspan(40, 1)), expected, 40), 2e-5);
  EXPECT_LT(error_of(session.decode(all.subspan(41, 4)), expected, 41), 2e-5);
  EXPECT_EQ(session.length(), 45);
}

class Family : public testing::TestWithParam<Traits> {};

TEST_P(Family, AFolderComputesTheDefinition) {
  const TinyModel model = tiny::make(GetParam());
  expect_reference(load(model), model);
}

std::vector<Traits> families() {
  std::vector<Traits> all(9);
  all[1].tied = true;
  all[2].architecture = "qwen2";
  all[3].architecture = "qwen3";
  all[3].dim = 16;  // heads_q * dim is not the embedding width
  all[4].heads_kv = 1;
  all[5].rope_json = R"({"type":"linear","factor":2.0})";
  all[5].scaling = {.kind = RopeScaling::Kind::linear, .factor = 2};
  all[6].rope_json = R"({"rope_type":"dynamic","factor":2.0,"original_max_position_embeddings":256})";
  all[6].scaling = {.kind = RopeScaling::Kind::dynamic, .factor = 2, .original_context = 256};
  all[7].rope_json =
      R"({"rope_type":"yarn","factor":4.0,"original_max_position_embeddings":64,"beta_fast":4})";
  all[7].scaling = {.kind = RopeScaling::Kind::yarn, .factor = 4, .original_context = 64, .beta_fast = 4};
  all[8].rope_json = R"({"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,)"
                     R"("original_max_position_embeddings":64})";
  all[8].scaling = {.kind = RopeScaling::Kind::llama3, .factor = 8, .original_context = 64};
  return all;
}

const char* const kFamilyNames[] = {"llama",  "tied",    "qwen2", "qwen3", "one_kv_head",
                                    "linear", "dynamic", "yarn",  "llama3"};

INSTANTIATE_TEST_SUITE_P(Session, Family, testing::ValuesIn(families()),
                         [](const auto& family) { return kFamilyNames[family.index]; });

TEST(ModelFile, GgufComputesTheDefinitionInEveryFamily) {
  for (const char* architecture : {"llama", "qwen2", "qwen3"}) {
    SCOPED_TRACE(architecture);
    const TinyModel model = tiny::make({.architecture = architecture});
    const TemporaryFolder folder("tiny_gguf");
    tiny::write_gguf(model, folder.path() + "/model.gguf");
    expect_reference(Model::load(folder.path() + "/model.gguf"), model);
  }
}

TEST(ModelFile, PartsOfASafetensorsIndexAreOneModel) {
  TinyModel model = tiny::make({});
  const TemporaryFolder folder("tiny_parts");
  Tensors parts[2];
  std::string map;
  int next = 0;
  for (const auto& [name, tensor] : model.tensors) {
    const int part = next++ % 2;
    parts[part].set(name, tensor);
    map += (map.empty() ? "\"" : ",\"") + name + "\":\"part-" + std::to_string(part) + ".safetensors\"";
  }
  for (int part = 0; part < 2; ++part)
    io::write_safetensors(folder.path() + "/part-" + std::to_string(part) + ".safetensors", parts[part]);
  tiny::write_text(folder.path() + "/model.safetensors.index.json", "{\"weight_map\":{" + map + "}}");
  tiny::write_text(folder.path() + "/config.json", tiny::config_json(model));
  expect_reference(Model::load(folder.path()), model);
}

std::string load_message(const TinyModel& model) {
  try {
    load(model);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(ModelFile, RefusesMissingMisshapenAndSurplusTensorsByName) {
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  TinyModel model = tiny::make({});
  model.tensors.erase(name);
  EXPECT_NE(load_message(model).find("'" + name + "' is missing"), std::string::npos);

  model = tiny::make({});
  model.tensors[name] = Tensor::zeros({48, 31});
  EXPECT_NE(load_message(model).find("has shape [48,31], expected [48,32]"), std::string::npos);

  model = tiny::make({});
  model.tensors["model.layers.0.self_attn.q_norm.weight"] = Tensor::zeros({8});
  EXPECT_NE(load_message(model).find("'model.layers.0.self_attn.q_norm.weight' has no place"),
            std::string::npos);

  model = tiny::make({});
  model.tensors[name] = Tensor::zeros({48, 32}, DType::i32);
  EXPECT_NE(load_message(model).find("expected f32, f16 or bf16"), std::string::npos);

  EXPECT_THROW(Model::load(testing::TempDir() + "no_such_model.gguf"), Error);
  EXPECT_THROW(Model::load(testing::TempDir()), Error);
}

/// The message of loading a GGUF file after one piece of its bytes was replaced by another of the same
/// length.
std::string gguf_message(const std::string& from, const std::string& to) {
  const TemporaryFolder folder("tiny_changed_gguf");
  const std::string path = folder.path() + "/model.gguf";
  tiny::write_gguf(tiny::make({}), path);
  std::ostringstream bytes;
  bytes << std::ifstream(path, std::ios::binary).rdbuf();
  std::string text = bytes.str();
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  tiny::write_text(path, text.replace(at, from.size(), to));
  try {
    Model::load(path);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(ModelFile, RefusesGgufOfOtherModelsByTheirTrouble) {
  EXPECT_NE(gguf_message("llama", "gemma").find("'gemma' is not supported"), std::string::npos);
  EXPECT_NE(gguf_message("llama.block_count", "llama.block_ctunt").find("llama.block_count"),
            std::string::npos);
  EXPECT_NE(gguf_message("blk.1.ffn_up", "blk.1.ffn_ip").find("'blk.1.ffn_up.weight' is missing"),
            std::string::npos);
  EXPECT_NE(gguf_message("blk.1.attn_norm", "blk.7.attn_norm").find("'blk.1.attn_norm.weight' is missing"),
            std::string::npos);
  const std::string layers = std::string("llama.block_count") + std::string("\4\0\0\0", 4);
  EXPECT_NE(gguf_message(layers + std::string("\2\0\0\0", 4), layers + std::string("\xff\xff\xff\xff", 4))
                .find("number of layers"),
            std::string::npos);
  EXPECT_NE(gguf_message(layers + std::string("\2\0\0\0", 4), layers + std::string("\1\0\0\0", 4))
                .find("has no place"),
            std::string::npos);
}

TEST(ModelFile, WeightsInHalfPrecisionAreUsedAsTheyAre) {
  for (const DType dtype : {DType::f16, DType::bf16}) {
    TinyModel model = tiny::make({});
    TinyModel rounded = model;
    for (auto& [name, tensor] : model.tensors) {
      tensor = tensor.to(dtype);
      rounded.tensors[name] = tensor.to(DType::f32);
    }
    const auto tokens = tiny::random_tokens(20, 257);
    const auto expected = tiny::reference_logits(rounded, tokens);
    Session session(load(model), Recipe::parse("cache=f32"));
    session.prefill(tokens, [&](int64_t first, const Tensor& logits) {
      // Activations are rounded to bf16 only beside bf16 weights.
      EXPECT_LT(error_of(logits, expected, first), dtype == DType::f16 ? 2e-5 : 2e-2);
    });
  }
}

TEST(Session, ChunksOfAnySizeAgree) {
  const auto model = load(tiny::make({}));
  const auto tokens = tiny::random_tokens(65, 257);
  const Recipe recipe = Recipe::parse("cache=f32");
  const Tensor whole = Session(model, recipe).prefill(tokens).clone();
  for (const int64_t chunk : {1, 7, 64}) {
    Session session(model, recipe, {.chunk = chunk});
    const Tensor logits = session.prefill(tokens);
    for (int64_t i = 0; i < logits.size(); ++i)
      ASSERT_NEAR(logits.data<float>()[i], whole.data<float>()[i], 1e-4f) << "chunk " << chunk;
  }
}

std::vector<float> run_all(const std::shared_ptr<const Model>& model, const std::string& recipe) {
  const auto tokens = tiny::random_tokens(70, 257);
  Session session(model, Recipe::parse(recipe));
  std::vector<float> all;
  const auto keep = [&](const Tensor& logits) {
    all.insert(all.end(), logits.data<float>(), logits.data<float>() + logits.size());
  };
  keep(session.prefill(std::span(tokens).first(60)));
  for (size_t t = 60; t < tokens.size(); ++t) keep(session.decode(std::span(tokens).subspan(t, 1)));
  return all;
}

TEST(Session, OneAndTwoThreadsGiveTheSameBits) {
  const auto model = load(tiny::make({.dim = 16}));
  for (const char* recipe : {"exact", "minference; quest:page_size=4,token_budget=16"}) {
    SCOPED_TRACE(recipe);
    set_threads(1);
    const auto one = run_all(model, recipe);
    set_threads(2);
    const auto two = run_all(model, recipe);
    set_threads(0);
    EXPECT_EQ(one, two);
  }
}

TEST(Session, RefusesPromptsThatDoNotFitAndStaysAsItWas) {
  const auto model = load(tiny::make({}));
  EXPECT_THROW(Session(model, {}, {.context = 4096}), Error);
  Session session(model, {}, {.context = 10});
  const auto tokens = tiny::random_tokens(11, 257);
  const std::span<const int32_t> all(tokens);
  EXPECT_THROW(session.prefill(all), Error);
  EXPECT_THROW(session.prefill(all.first(0)), Error);
  EXPECT_THROW(session.prefill(std::vector<int32_t>{3, 257}), Error);
  EXPECT_THROW(session.prefill(std::vector<int32_t>{-1}), Error);
  EXPECT_EQ(session.length(), 0);
  session.prefill(all.first(10));
  EXPECT_THROW(session.decode(all.last(1)), Error);
  EXPECT_EQ(session.length(), 10);
}

TEST(Session, TruncateForgetsAndForkGoesItsOwnWay) {
  const auto model = load(tiny::make({}));
  const auto tokens = tiny::random_tokens(30, 257);
  const std::span<const int32_t> all(tokens);
  Session session(model);
  session.prefill(all.first(20));
  const Tensor straight = session.decode(all.subspan(20, 1)).clone();
  session.truncate(20);
  Session other = session.fork();
  session.decode(all.subspan(25, 1));
  const Tensor again = other.decode(all.subspan(20, 1));
  EXPECT_TRUE(
      std::equal(straight.data<float>(), straight.data<float>() + straight.size(), again.data<float>()));
  EXPECT_EQ(session.length(), 21);
  EXPECT_GT(session.kv_bytes(), 0);
  EXPECT_GT(session.bytes_read(), 0);
  EXPECT_THROW(session.truncate(22), Error);
}

TEST(Session, ObserverSeesEveryLayerWithAllKeysAndThePlan) {
  const auto model = load(tiny::make({}));
  const auto tokens = tiny::random_tokens(40, 257);
  for (const bool sparse : {false, true}) {
    Session session(model, Recipe::parse(sparse ? "minference" : "exact"), {.chunk = 25});
    std::vector<int64_t> layers, keys;
    session.observe([&](const PrefillView& view) {
      layers.push_back(view.layer);
      keys.push_back(view.k.dim(2));
      EXPECT_EQ(view.plan != nullptr, sparse);
      if (view.plan) {
        EXPECT_EQ(view.plan->keys, view.k.dim(2));
      }
    });
    session.prefill(tokens);
    EXPECT_EQ(layers, (std::vector<int64_t>{0, 1, 0, 1}));
    EXPECT_EQ(keys, (std::vector<int64_t>{25, 25, 40, 40}));
  }
}

TEST(Session, DuoStreamsTheHeadsWithTheSmallestGates) {
  const auto model = load(tiny::make({}), true);
  const auto tokens = tiny::random_tokens(400, 256);
  Session dense(model), duo(model, Recipe::parse("duo:sparsity=0.5,sink=4,recent=16"));
  dense.prefill(tokens);
  duo.prefill(tokens);
  const double ratio = static_cast<double>(duo.kv_bytes()) / static_cast<double>(dense.kv_bytes());
  EXPECT_NEAR(ratio, 0.5 + 0.5 * 20 / 400, 0.03);

  const Tensor gates = model->head_gates(4, 16);
  ASSERT_EQ(gates.shape(), (Shape{2, 2}));
  for (int64_t i = 0; i < 4; ++i) EXPECT_GT(gates.data<float>()[i], 0.0f);
  // A window that holds the whole calibration text moves nothing.
  EXPECT_EQ(model->head_gates(2048, 2048).at<float>(0, 0), 0.0f);
}

TEST(Generate, GreedyTextIsTheArgmaxOfEveryStepAndStreamsWhole) {
  const auto model = load(tiny::make({}), true);
  const auto prompt = model->tokenizer().encode("Hello", false, false);
  ASSERT_EQ(prompt.size(), 5u);
  Session session(model), by_hand(model);
  std::string streamed;
  const Generation result = generate(session, prompt, 12, {}, [&](std::string_view piece) {
    streamed += piece;
    return true;
  });
  EXPECT_EQ(streamed, result.text);
  EXPECT_EQ(result.stats.new_tokens, static_cast<int64_t>(result.tokens.size()));
  Tensor logits = by_hand.prefill(prompt);
  for (const int32_t token : result.tokens) {
    const float* row = logits.data<float>();
    EXPECT_EQ(token, std::max_element(row, row + 257) - row);
    logits = by_hand.decode(std::span(&token, 1));
  }
  EXPECT_GT(result.stats.kv_bytes, 0);
}

TEST(Generate, StopsWhereItIsTold) {
  const auto model = load(tiny::make({}), true);
  const std::vector<int32_t> prompt = {1, 2, 3};
  const SamplerOptions random{.temperature = 3, .seed = 1};
  {
    Session session(model);
    const Generation result = generate(session, prompt, 0, random);
    EXPECT_EQ(result.tokens.size(), 0u);
    EXPECT_EQ(result.reason, StopReason::length);
  }
  {
    Session session(model, {}, {.context = 6});
    const Generation result = generate(session, prompt, 100, random);
    EXPECT_EQ(result.reason, StopReason::context);
    EXPECT_EQ(result.tokens.size(), 4u);  // three more in the context, and the one they predict
  }
  {
    Session session(model);
    const Generation result = generate(session, prompt, 2000, random);
    EXPECT_EQ(result.reason, StopReason::end);
    EXPECT_EQ(result.tokens.back(), 256);
    Session other(model);
    EXPECT_EQ(generate(other, prompt, 2000, random, {}, true).reason, StopReason::length);
  }
  {
    Session session(model);
    const Generation result = generate(session, prompt, 100, random, [](std::string_view) { return false; });
    EXPECT_EQ(result.reason, StopReason::caller);
  }
}

}  // namespace
}  // namespace fovea::model
