// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "fovea/core/rng.h"
#include "fovea/core/tensor.h"
#include "fovea/io/safetensors.h"
#include "fovea/model/config.h"

/// A decoder small enough to compute in double precision in the test, and its files.
namespace fovea::model::tiny {

struct TinyModel {
  ModelConfig config;
  std::string rope_json = "null";         // the rope_scaling of config.json
  std::map<std::string, Tensor> tensors;  // f32, by the names of a folder
};

struct Traits {
  std::string architecture = "llama";
  int64_t layers = 2, embedding = 32, feed_forward = 48, heads_q = 4, heads_kv = 2, dim = 8, vocabulary = 257;
  bool tied = false;
  std::string rope_json = "null";
  RopeScaling scaling;
};

inline TinyModel make(const Traits& traits, uint64_t seed = 7) {
  TinyModel model;
  ModelConfig& c = model.config;
  c.architecture = traits.architecture;
  c.layers = traits.layers;
  c.embedding = traits.embedding;
  c.feed_forward = traits.feed_forward;
  c.heads_q = traits.heads_q;
  c.heads_kv = traits.heads_kv;
  c.dim = traits.dim;
  c.vocabulary = traits.vocabulary;
  c.context = 2048;
  c.tied_embeddings = traits.tied;
  c.rope_scaling = traits.scaling;
  model.rope_json = traits.rope_json;

  uint64_t stream = 0;
  const auto random = [&](const Shape& shape, float scale, float centre = 0) {
    Tensor values = random_normal(shape, seed, stream++);
    for (int64_t i = 0; i < values.size(); ++i)
      values.data<float>()[i] = centre + scale * values.data<float>()[i];
    return values;
  };
  const auto matrix = [&](const std::string& name, int64_t rows, int64_t columns) {
    model.tensors[name + ".weight"] = random({rows, columns}, 1.2f / std::sqrt(static_cast<float>(columns)));
  };
  const auto norm = [&](const std::string& name, int64_t size) {
    model.tensors[name + ".weight"] = random({size}, 0.2f, 1.0f);
  };
  matrix("model.embed_tokens", c.vocabulary, c.embedding);
  if (!c.tied_embeddings) matrix("lm_head", c.vocabulary, c.embedding);
  norm("model.norm", c.embedding);
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    const std::pair<std::string, int64_t> heads[] = {{"q", c.heads_q}, {"k", c.heads_kv}, {"v", c.heads_kv}};
    for (const auto& [name, count] : heads) {
      matrix(prefix + "self_attn." + name + "_proj", count * c.dim, c.embedding);
      if (c.architecture == "qwen2")
        model.tensors[prefix + "self_attn." + name + "_proj.bias"] = random({count * c.dim}, 0.5f);
      if (c.architecture == "qwen3" && name != "v") norm(prefix + "self_attn." + name + "_norm", c.dim);
    }
    matrix(prefix + "self_attn.o_proj", c.embedding, c.heads_q * c.dim);
    matrix(prefix + "mlp.gate_proj", c.feed_forward, c.embedding);
    matrix(prefix + "mlp.up_proj", c.feed_forward, c.embedding);
    matrix(prefix + "mlp.down_proj", c.embedding, c.feed_forward);
    norm(prefix + "input_layernorm", c.embedding);
    norm(prefix + "post_attention_layernorm", c.embedding);
  }
  return model;
}

inline std::string config_json(const TinyModel& model) {
  const ModelConfig& c = model.config;
  const auto number = [](int64_t value) { return std::to_string(value); };
  return R"({"model_type":")" + c.architecture + R"(","hidden_size":)" + number(c.embedding) +
         R"(,"intermediate_size":)" + number(c.feed_forward) + R"(,"num_hidden_layers":)" + number(c.layers) +
         R"(,"num_attention_heads":)" + number(c.heads_q) + R"(,"num_key_value_heads":)" +
         number(c.heads_kv) + R"(,"head_dim":)" + number(c.dim) + R"(,"vocab_size":)" + number(c.vocabulary) +
         R"(,"max_position_embeddings":)" + number(c.context) +
         R"(,"rms_norm_eps":1e-5,"rope_theta":10000.0,"hidden_act":"silu","tie_word_embeddings":)" +
         (c.tied_embeddings ? "true" : "false") + R"(,"rope_scaling":)" + model.rope_json + "}";
}

/// GPT-2's printable stand-in for a byte, as UTF-8.
inline std::string byte_symbol(int byte) {
  int shifted = 256;
  for (int b = 0; b < byte; ++b) shifted += !((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174);
  const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  const int code = printable ? byte : shifted;
  if (code < 128) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 63))};
}

/// Token b is byte b, token 256 ends the text.
inline std::string tokenizer_json() {
  std::string vocabulary;
  for (int byte = 0; byte < 256; ++byte) {
    std::string symbol = byte_symbol(byte);
    if (symbol == "\"" || symbol == "\\") symbol = "\\" + symbol;
    vocabulary += (byte ? ",\"" : "\"") + symbol + "\":" + std::to_string(byte);
  }
  return R"({"version":"1.0","added_tokens":[{"id":256,"content":"<|end|>","special":true,"single_word":false,)"
         R"("lstrip":false,"rstrip":false,"normalized":false}],"normalizer":null,"pre_tokenizer":{"type":"ByteLevel",)"
         R"("add_prefix_space":false,"trim_offsets":true,"use_regex":true},"decoder":{"type":"ByteLevel"},)"
         R"("model":{"type":"BPE","vocab":{)" +
         vocabulary + R"(},"merges":[]}})";
}

inline void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

/// A folder that is gone when the object is.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const std::string& name)
      : path_(testing::TempDir() + "fovea_" + name + "_" + std::to_string(getpid())) {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~TemporaryFolder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// config.json and model.safetensors, and tokenizer.json where asked.
inline void write_folder(const TinyModel& model, const std::string& folder, bool with_tokenizer = false) {
  write_text(folder + "/config.json", config_json(model));
  Tensors tensors;
  for (const auto& [name, tensor] : model.tensors) tensors.set(name, tensor);
  io::write_safetensors(folder + "/model.safetensors", tensors);
  if (!with_tokenizer) return;
  write_text(folder + "/tokenizer.json", tokenizer_json());
  write_text(folder + "/tokenizer_config.json", R"({"eos_token":"<|end|>","add_bos_token":false})");
}

/// The model as a GGUF file of f32 tensors; q and k rows of llama in interleaved order, as that format wants.
inline void write_gguf(const TinyModel& model, const std::string& path) {
  std::string bytes;
  const auto put = [&](auto value) { bytes.append(reinterpret_cast<const char*>(&value), sizeof(value)); };
  const auto put_text = [&](const std::string& text) {
    put(static_cast<uint64_t>(text.size()));
    bytes += text;
  };
  const ModelConfig& c = model.config;
  const std::string prefix = c.architecture + ".";
  const std::vector<std::pair<std::string, uint32_t>> integers = {
      {"block_count", static_cast<uint32_t>(c.layers)},
      {"embedding_length", static_cast<uint32_t>(c.embedding)},
      {"feed_forward_length", static_cast<uint32_t>(c.feed_forward)},
      {"attention.head_count", static_cast<uint32_t>(c.heads_q)},
      {"attention.head_count_kv", static_cast<uint32_t>(c.heads_kv)},
      {"attention.key_length", static_cast<uint32_t>(c.dim)},
      {"attention.value_length", static_cast<uint32_t>(c.dim)},
      {"context_length", static_cast<uint32_t>(c.context)}};
  const std::vector<std::pair<std::string, float>> numbers = {{"attention.layer_norm_rms_epsilon", 1e-5f},
                                                              {"rope.freq_base", 10000.0f}};
  bytes = "GGUF";
  put(uint32_t{3});
  put(static_cast<uint64_t>(model.tensors.size()));
  put(static_cast<uint64_t>(1 + integers.size() + numbers.size()));
  put_text("general.architecture");
  put(uint32_t{8});
  put_text(c.architecture);
  for (const auto& [key, value] : integers) {
    put_text(prefix + key);
    put(uint32_t{4});
    put(value);
  }
  for (const auto& [key, value] : numbers) {
    put_text(prefix + key);
    put(uint32_t{6});
    put(value);
  }

  const std::pair<std::string, std::string> names[] = {
      {"model.layers.", "blk."},           {"model.embed_tokens", "token_embd"},
      {"model.norm", "output_norm"},       {"lm_head", "output"},
      {"self_attn.q_norm", "attn_q_norm"}, {"self_attn.k_norm", "attn_k_norm"},
      {"self_attn.q_proj", "attn_q"},      {"self_attn.k_proj", "attn_k"},
      {"self_attn.v_proj", "attn_v"},      {"self_attn.o_proj", "attn_output"},
      {"input_layernorm", "attn_norm"},    {"post_attention_layernorm", "ffn_norm"},
      {"mlp.gate_proj", "ffn_gate"},       {"mlp.up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"}};
  std::string data;
  for (const auto& [name, tensor] : model.tensors) {
    std::string renamed = name;
    for (const auto& [from, to] : names)
      if (const size_t at = renamed.find(from); at != std::string::npos) renamed.replace(at, from.size(), to);
    put_text(renamed);
    put(static_cast<uint32_t>(tensor.rank()));
    for (int axis = tensor.rank() - 1; axis >= 0; --axis) put(static_cast<uint64_t>(tensor.shape()[axis]));
    put(uint32_t{0});
    put(static_cast<uint64_t>(data.size()));
    Tensor stored = tensor.clone();
    if (c.architecture == "llama" &&
        (renamed.ends_with("attn_q.weight") || renamed.ends_with("attn_k.weight")))
      for (int64_t row = 0; row < tensor.dim(0); ++row) {
        const int64_t head = row / c.dim, half = row % c.dim / (c.dim / 2), pair = row % (c.dim / 2);
        stored.select(0, head * c.dim + 2 * pair + half).copy_from(tensor.select(0, row));
      }
    data.append(static_cast<const char*>(stored.raw()), static_cast<size_t>(stored.bytes()));
    data.resize((data.size() + 31) / 32 * 32);
  }
  bytes.resize((bytes.size() + 31) / 32 * 32);
  write_text(path, bytes + data);
}

// The plain forward, one token and one number at a time.

using Vector = std::vector<double>;

inline Vector multiply(const Tensor& weight, const Vector& x) {
  Vector y(static_cast<size_t>(weight.dim(0)));
  for (int64_t row = 0; row < weight.dim(0); ++row)
    for (int64_t i = 0; i < weight.dim(1); ++i)
      y[static_cast<size_t>(row)] +=
          static_cast<double>(weight.at<float>(row, i)) * x[static_cast<size_t>(i)];
  return y;
}

inline Vector normalise(const Vector& x, const Tensor& weight) {
  double squares = 0;
  for (const double value : x) squares += value * value;
  const double factor = 1 / std::sqrt(squares / static_cast<double>(x.size()) + 1e-5);
  Vector y(x.size());
  for (size_t i = 0; i < x.size(); ++i)
    y[i] = x[i] * factor * static_cast<double>(weight.at<float>(static_cast<int64_t>(i)));
  return y;
}

/// One head after its norm (where the model has one) and rotation to `position`.
inline Vector rotated_head(const TinyModel& model, const Vector& all, int64_t head, const std::string& norm,
                           int64_t position, const Rope& rope) {
  const int64_t dim = model.config.dim;
  Vector x(all.begin() + head * dim, all.begin() + (head + 1) * dim);
  if (model.tensors.contains(norm)) x = normalise(x, model.tensors.at(norm));
  Vector y(x.size());
  for (int64_t m = 0; m < dim / 2; ++m) {
    const auto a = static_cast<size_t>(m), b = static_cast<size_t>(m + dim / 2);
    const double angle = static_cast<double>(position) * static_cast<double>(rope.frequencies.at<float>(m));
    const double cosine = std::cos(angle) * static_cast<double>(rope.magnitude);
    const double sine = std::sin(angle) * static_cast<double>(rope.magnitude);
    y[a] = x[a] * cosine - x[b] * sine;
    y[b] = x[b] * cosine + x[a] * sine;
  }
  return y;
}

/// Logits of every position.
inline std::vector<Vector> reference_logits(const TinyModel& model, const std::vector<int32_t>& tokens) {
  const ModelConfig& c = model.config;
  const Rope rope = make_rope(c.rope_scaling, c.dim, c.rope_theta, c.context);
  const Tensor& embedding = model.tensors.at("model.embed_tokens.weight");
  const size_t count = tokens.size();
  std::vector<Vector> x(count);
  for (size_t t = 0; t < count; ++t)
    for (int64_t e = 0; e < c.embedding; ++e)
      x[t].push_back(static_cast<double>(embedding.at<float>(tokens[t], e)));
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    const auto weight = [&](const std::string& name) { return model.tensors.at(prefix + name + ".weight"); };
    const auto project = [&](const std::string& name, const Vector& input) {
      Vector y = multiply(weight("self_attn." + name + "_proj"), input);
      const auto bias = model.tensors.find(prefix + "self_attn." + name + "_proj.bias");
      if (bias != model.tensors.end())
        for (size_t i = 0; i < y.size(); ++i)
          y[i] += static_cast<double>(bias->second.at<float>(static_cast<int64_t>(i)));
      return y;
    };
    std::vector<std::vector<Vector>> q(count), k(count);
    std::vector<Vector> v(count);
    for (size_t t = 0; t < count; ++t) {
      const Vector n = normalise(x[t], weight("input_layernorm"));
      const Vector all_q = project("q", n), all_k = project("k", n);
      const auto position = static_cast<int64_t>(t);
      for (int64_t h = 0; h < c.heads_q; ++h)
        q[t].push_back(rotated_head(model, all_q, h, prefix + "self_attn.q_norm.weight", position, rope));
      for (int64_t h = 0; h < c.heads_kv; ++h)
        k[t].push_back(rotated_head(model, all_k, h, prefix + "self_attn.k_norm.weight", position, rope));
      v[t] = project("v", n);
    }
    for (size_t t = 0; t < count; ++t) {
      Vector attended(static_cast<size_t>(c.heads_q * c.dim));
      for (int64_t h = 0; h < c.heads_q; ++h) {
        const auto g = static_cast<size_t>(h / (c.heads_q / c.heads_kv));
        Vector p(t + 1);
        double sum = 0;
        for (size_t j = 0; j <= t; ++j) {
          const double score = std::inner_product(q[t][static_cast<size_t>(h)].begin(),
                                                  q[t][static_cast<size_t>(h)].end(), k[j][g].begin(), 0.0);
          p[j] = std::exp(score / std::sqrt(static_cast<double>(c.dim)));
          sum += p[j];
        }
        for (size_t j = 0; j <= t; ++j)
          for (int64_t d = 0; d < c.dim; ++d)
            attended[static_cast<size_t>(h * c.dim + d)] +=
                p[j] / sum * v[j][g * static_cast<size_t>(c.dim) + static_cast<size_t>(d)];
      }
      const Vector update = multiply(weight("self_attn.o_proj"), attended);
      for (size_t e = 0; e < update.size(); ++e) x[t][e] += update[e];
      const Vector m = normalise(x[t], weight("post_attention_layernorm"));
      Vector gate = multiply(weight("mlp.gate_proj"), m);
      const Vector up = multiply(weight("mlp.up_proj"), m);
      for (size_t f = 0; f < gate.size(); ++f) gate[f] *= up[f] / (1 + std::exp(-gate[f]));
      const Vector down = multiply(weight("mlp.down_proj"), gate);
      for (size_t e = 0; e < down.size(); ++e) x[t][e] += down[e];
    }
  }
  std::vector<Vector> logits;
  const Tensor& head = c.tied_embeddings ? embedding : model.tensors.at("lm_head.weight");
  for (size_t t = 0; t < count; ++t)
    logits.push_back(multiply(head, normalise(x[t], model.tensors.at("model.norm.weight"))));
  return logits;
}

inline std::vector<int32_t> random_tokens(int64_t count, int64_t vocabulary, uint64_t seed = 3) {
  Rng rng(seed);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(rng.next_below(vocabulary)));
  return tokens;
}

}  // namespace fovea::model::tiny
