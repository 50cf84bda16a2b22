// SPDX-License-Identifier: Apache-2.0
// The default model against what llama.cpp computes for it (tests/fixtures/smollm_logits.py).
// FOVEA_TEST_MODEL names the GGUF file; without it these tests are skipped. FOVEA_TEST_LOGITS names a folder
// with the logits of all positions (exact.npy, quantised.npy) and prints the full comparison.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "fovea/io/npy.h"
#include "fovea/io/safetensors.h"
#include "fovea/model/generate.h"
#include "fovea/model/session.h"

namespace fovea::model {
namespace {

std::vector<int32_t> ints(const Tensor& tensor) {
  return {tensor.data<int32_t>(), tensor.data<int32_t>() + tensor.size()};
}

double cosine(const float* a, const float* b, int64_t count) {
  double ab = 0, aa = 0, bb = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
    ab += x * y;
    aa += x * x;
    bb += y * y;
  }
  return ab / std::sqrt(aa * bb);
}

class SmolLm : public testing::Test {
 protected:
  void SetUp() override {
    const char* path = std::getenv("FOVEA_TEST_MODEL");
    if (path == nullptr || *path == '\0')
      GTEST_SKIP() << "FOVEA_TEST_MODEL does not name SmolLM2-135M-Instruct.Q4_1.gguf";
    path_ = path;
    fixture_ =
        io::read_safetensors(std::string(FOVEA_SOURCE_DIR) + "/tests/model/data/smollm_logits.safetensors");
  }

  std::shared_ptr<const Model> load(bool dequantize) const {
    return Model::load(path_, {.dequantize = dequantize});
  }
  std::vector<int32_t> tokens(const char* name) const { return ints(fixture_.tensors[name]); }

  /// Calls visit(position, logits [V]) for every token of the fixed text.
  template <typename Visit>
  void for_each_position(bool dequantize, const Visit& visit) const {
    Session session(load(dequantize));
    session.prefill(tokens("tokens"), [&](int64_t first, const Tensor& logits) {
      for (int64_t row = 0; row < logits.dim(0); ++row) visit(first + row, logits.select(0, row));
    });
  }

  /// Cosine at each of the fixture's whole rows.
  std::vector<double> cosines(bool dequantize) const {
    const std::vector<int32_t> positions = tokens("positions");
    const Tensor expected = fixture_.tensors["logits"].to(DType::f32);
    std::vector<double> result;
    for_each_position(dequantize, [&](int64_t position, const Tensor& logits) {
      const auto found = std::find(positions.begin(), positions.end(), position);
      if (found == positions.end()) return;
      result.push_back(cosine(logits.data<float>(),
                              expected.data<float>() + (found - positions.begin()) * expected.dim(1),
                              expected.dim(1)));
    });
    return result;
  }

  /// The greedy text must be llama.cpp's, or leave it where its two best tokens were within `gap`.
  void expect_greedy(bool dequantize, const char* name, float gap) const {
    Session session(load(dequantize));
    const auto prompt = tokens("prompt"), expected = tokens(name);
    const Tensor gaps = fixture_.tensors[std::string(name) + "_gaps"];
    const Generation result = generate(session, prompt, static_cast<int64_t>(expected.size()));
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_LT(i, result.tokens.size());
      if (result.tokens[i] == expected[i]) continue;
      EXPECT_LT(gaps.at<float>(static_cast<int64_t>(i)), gap)
          << "differs at token " << i << ": " << result.text;
      return;
    }
  }

  std::string path_;
  io::SafetensorsFile fixture_;
};

TEST_F(SmolLm, ExactWeightsGiveTheLogitsOfLlamaCpp) {
  const auto result = cosines(true);
  ASSERT_EQ(result.size(), 8u);
  for (const double value : result) EXPECT_GT(value, 0.99999);
}

TEST_F(SmolLm, ExactWeightsRankTheTopTokensAsLlamaCppDoes) {
  const Tensor ids = fixture_.tensors["top_ids"], values = fixture_.tensors["top_logits"].to(DType::f32);
  double worst = 0;
  for_each_position(true, [&](int64_t position, const Tensor& logits) {
    if (position % 8 != 7) return;
    for (int64_t i = 0; i < ids.dim(1); ++i)
      worst =
          std::max(worst, static_cast<double>(std::fabs(logits.at<float>(ids.at<int32_t>(position / 8, i)) -
                                                        values.at<float>(position / 8, i))));
  });
  EXPECT_LT(worst, 0.05);
}

// Activations of 8 bits move the logits of a model this small; llama.cpp moves as far from its own exact form
// (smollm_logits.py, FOVEA_TEST_LOGITS).
TEST_F(SmolLm, QuantisedWeightsStayCloseToExactLogits) {
  const auto result = cosines(false);
  ASSERT_EQ(result.size(), 8u);
  double mean = 0;
  for (const double value : result) {
    EXPECT_GT(value, 0.995);
    mean += value / 8;
  }
  EXPECT_GT(mean, 0.999);
}

TEST_F(SmolLm, GreedyTextIsThatOfLlamaCpp) {
  expect_greedy(true, "exact_greedy", 0.05f);
  expect_greedy(false, "greedy", 0.05f);
}

TEST_F(SmolLm, TheTokenizerAgreesOnTheFixedText) {
  const auto model = load(false);
  auto tokens_of_text = model->tokenizer().encode(fixture_.metadata.at("text"), false, false);
  tokens_of_text.resize(512);
  EXPECT_EQ(tokens_of_text, tokens("tokens"));
  EXPECT_EQ(model->tokenizer().encode(fixture_.metadata.at("prompt"), false, true), tokens("prompt"));
}

TEST_F(SmolLm, AllPositionsAgainstLlamaCpp) {
  const char* folder = std::getenv("FOVEA_TEST_LOGITS");
  if (folder == nullptr) GTEST_SKIP() << "FOVEA_TEST_LOGITS does not name a folder of recorded logits";
  const Tensor exact = io::read_npy(std::string(folder) + "/exact.npy");
  const Tensor quantised = io::read_npy(std::string(folder) + "/quantised.npy");
  const int64_t rows = exact.dim(0), columns = exact.dim(1);
  const auto row_of = [&](const Tensor& all, int64_t row) { return all.data<float>() + row * columns; };
  const auto report = [&](const char* what, const auto& fill) {
    double worst = 1, mean = 0;
    int64_t at = 0;
    fill([&](int64_t position, double value) {
      mean += value / static_cast<double>(rows);
      if (value < worst) worst = value, at = position;
    });
    std::printf("%-40s mean cosine %.6f, worst %.6f at %lld\n", what, mean, worst,
                static_cast<long long>(at));
    return worst;
  };
  const auto compare = [&](bool dequantize, const Tensor& with) {
    return [&, dequantize, with](const auto& add) {
      for_each_position(dequantize, [&](int64_t position, const Tensor& logits) {
        add(position, cosine(logits.data<float>(), row_of(with, position), columns));
      });
    };
  };
  EXPECT_GT(report("exact, llama.cpp exact", compare(true, exact)), 0.9999);
  report("quantised, llama.cpp exact", compare(false, exact));
  report("quantised, llama.cpp quantised", compare(false, quantised));
  report("llama.cpp quantised, llama.cpp exact", [&](const auto& add) {
    for (int64_t row = 0; row < rows; ++row)
      add(row, cosine(row_of(quantised, row), row_of(exact, row), columns));
  });
}

}  // namespace
}  // namespace fovea::model
