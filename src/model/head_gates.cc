// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/head_gates.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>
#include <vector>

#include "fovea/cache/duo_attention.h"
#include "fovea/core/rng.h"
#include "fovea/core/thread_pool.h"
#include "fovea/kernels/attention.h"
#include "fovea/model/model.h"
#include "fovea/model/transformer.h"

namespace fovea::model {
namespace {

constexpr std::array<std::string_view, 32> kCodeWords = {
    "amber",  "basin",   "cedar",  "delta",   "ember",  "falcon", "garnet", "harbor",
    "indigo", "juniper", "kettle", "lantern", "marble", "nectar", "orchid", "pepper",
    "quartz", "ribbon",  "saddle", "timber",  "umbra",  "velvet", "walnut", "xenon",
    "yarrow", "zephyr",  "anchor", "bronze",  "copper", "dragon", "engine", "feather"};

constexpr std::array<std::string_view, 8> kFiller = {
    "The road follows the river for a while and then climbs between fields of barley.",
    "Nobody at the station could say when the next train was due, so they waited.",
    "In the morning the market fills with people who come to talk as much as to buy.",
    "A light rain had fallen overnight and the stones of the yard were still dark.",
    "She counted the boxes again and wrote the number down beside the date.",
    "Most of the houses were built before the bridge, and face the old ferry.",
    "The report says little about the cost, and even less about who will pay it.",
    "When the bell rang the children ran out and the courtyard was loud again."};

constexpr int64_t kListWords = 12;    // words of one list
constexpr int64_t kLists = 6;         // lists that are told, then asked for in order
constexpr int64_t kFillerWords = 60;  // between two lists, about

std::string random_list(Rng& rng) {
  std::string list;
  for (int64_t i = 0; i < kListWords; ++i) {
    if (i > 0) list += ' ';
    list += kCodeWords[static_cast<size_t>(rng.next_below(static_cast<int64_t>(kCodeWords.size())))];
  }
  return list;
}

int64_t count_words(std::string_view text) { return std::count(text.begin(), text.end(), ' ') + 1; }

/// squared[g] += sums over the query heads of group g, rows and channels of (a - b)^2 and a^2.
void add_squares(const Tensor& a, const Tensor& b, int64_t heads_kv, double* difference, double* total) {
  const int64_t heads = a.dim(1), group = heads / heads_kv, rows = a.dim(2), dim = a.dim(3);
  std::vector<std::array<double, 2>> sums(static_cast<size_t>(heads));
  parallel_for(heads, [&](int64_t head, int) {
    auto& sum = sums[static_cast<size_t>(head)];
    const Tensor x = a.select(0, 0).select(0, head), y = b.select(0, 0).select(0, head);
    for (int64_t row = 0; row < rows; ++row) {
      const float* full = x.data<float>() + row * x.stride(0);
      const float* part = y.data<float>() + row * y.stride(0);
      for (int64_t c = 0; c < dim; ++c) {
        const double moved = static_cast<double>(full[c]) - static_cast<double>(part[c]);
        sum[0] += moved * moved;
        sum[1] += static_cast<double>(full[c]) * static_cast<double>(full[c]);
      }
    }
  });
  for (int64_t head = 0; head < heads; ++head) {
    difference[head / group] += sums[static_cast<size_t>(head)][0];
    total[head / group] += sums[static_cast<size_t>(head)][1];
  }
}

}  // namespace

std::string calibration_text(int64_t words) {
  Rng rng(111);
  std::string text;
  int64_t written = 0;
  const auto say = [&](const std::string& sentence) {
    text += sentence;
    text += ' ';
    written += count_words(sentence);
  };
  const auto fill = [&](int64_t count) {
    const int64_t end = std::min(written + count, words);
    while (written < end)
      say(std::string(kFiller[static_cast<size_t>(rng.next_below(static_cast<int64_t>(kFiller.size())))]));
  };
  while (written < words) {
    std::array<std::string, static_cast<size_t>(kLists)> lists;
    for (size_t i = 0; i < lists.size(); ++i) {
      lists[i] = random_list(rng);
      fill(kFillerWords);
      say("Remember that list number " + std::to_string(i + 1) + " is: " + lists[i] + ".");
    }
    fill(2 * kFillerWords);
    for (size_t i = 0; i < lists.size(); ++i)
      say("As was said above, list number " + std::to_string(i + 1) + " is: " + lists[i] + ".");
  }
  return text;
}

Tensor measure_head_gates(const Model& model, int64_t sink, int64_t recent) {
  const ModelConfig& config = model.config();
  const int64_t wanted = std::min(std::max<int64_t>(4 * (sink + recent), 1024), config.context);
  std::vector<int32_t> tokens = model.tokenizer().encode(calibration_text(wanted), true, false);
  tokens.resize(static_cast<size_t>(std::min(static_cast<int64_t>(tokens.size()), wanted)));

  const cache::StreamingOptions streaming{.sink = sink, .recent = recent};
  Tensor gates = Tensor::zeros({config.layers, config.heads_kv});
  const auto attend = [&](int64_t layer, const Tensor& q, const cache::KvBlock& block) {
    const Tensor k = block.k.unsqueeze(0), v = block.v.unsqueeze(0);
    auto full = kernels::flash_forward(q, k, v, {.visible = kernels::Visibility::causal()});
    const auto stream = kernels::flash_forward(q, k, v, {.visible = streaming.visibility()});
    std::vector<double> difference(static_cast<size_t>(config.heads_kv)), total(difference);
    add_squares(full.o, stream.o, config.heads_kv, difference.data(), total.data());
    for (int64_t head = 0; head < config.heads_kv; ++head) {
      const auto g = static_cast<size_t>(head);
      gates.at<float>(layer, head) =
          total[g] > 0 ? static_cast<float>(std::sqrt(difference[g] / total[g])) : 0.0f;
    }
    return full;
  };
  Transformer transformer(model.weights(), config,
                          make_rope(config.rope_scaling, config.dim, config.rope_theta, wanted));
  transformer.run(tokens, 0, attend);
  return gates;
}

}  // namespace fovea::model
