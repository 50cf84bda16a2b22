// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "fovea/core/error.h"
#include "fovea/io/gguf.h"

namespace fovea::model {
namespace {

using Json = nlohmann::json;

[[noreturn]] void unknown_architecture(const std::string& name, const std::string& origin) {
  throw Error(origin + ": architecture '" + name + "' is not supported (llama, mistral, qwen2, qwen3 are)",
              ErrorCode::unsupported);
}

/// Mistral differs from Llama in nothing that the runner sees.
std::string runner_architecture(const std::string& name, const std::string& origin) {
  if (name == "llama" || name == "mistral") return "llama";
  if (name == "qwen2" || name == "qwen3") return name;
  unknown_architecture(name, origin);
}

/// A JSON object read with errors that name the file and the key.
class JsonReader {
 public:
  JsonReader(const Json& object, std::string origin) : object_(object), origin_(std::move(origin)) {}

  bool has(const char* key) const { return object_.contains(key) && !object_.at(key).is_null(); }
  const Json& at(const char* key) const {
    require(has(key), origin_, ": '", key, "' is missing");
    return object_.at(key);
  }
  int64_t integer(const char* key) const {
    const Json& value = at(key);
    require(value.is_number_integer() || value.is_number_unsigned(), origin_, ": '", key,
            "' is not an integer");
    if (value.is_number_unsigned())
      require(value.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()), origin_,
              ": '", key, "' is too large");
    return value.get<int64_t>();
  }
  int64_t integer(const char* key, int64_t fallback) const { return has(key) ? integer(key) : fallback; }
  double number(const char* key) const {
    require(at(key).is_number(), origin_, ": '", key, "' is not a number");
    return at(key).get<double>();
  }
  double number(const char* key, double fallback) const { return has(key) ? number(key) : fallback; }
  bool boolean(const char* key, bool fallback) const {
    if (!has(key)) return fallback;
    require(at(key).is_boolean(), origin_, ": '", key, "' is not true or false");
    return at(key).get<bool>();
  }
  std::string text(const char* key, const std::string& fallback) const {
    if (!has(key)) return fallback;
    require(at(key).is_string(), origin_, ": '", key, "' is not a string");
    return at(key).get<std::string>();
  }
  JsonReader object(const char* key) const {
    require(at(key).is_object(), origin_, ": '", key, "' is not an object");
    return {at(key), origin_ + ": " + key};
  }

 private:
  const Json& object_;
  std::string origin_;
};

/// `rope` is the rope_scaling (or rope_parameters) object.
RopeScaling json_rope_scaling(const JsonReader& rope, double context, const std::string& origin) {
  RopeScaling scaling;
  scaling.kind = parse_rope_scaling(rope.text("rope_type", rope.text("type", "none")), origin);
  if (scaling.kind == RopeScaling::Kind::none) return scaling;
  scaling.factor = rope.number("factor");
  scaling.original_context = rope.number("original_max_position_embeddings", context);
  scaling.low_frequency_factor = rope.number("low_freq_factor", scaling.low_frequency_factor);
  scaling.high_frequency_factor = rope.number("high_freq_factor", scaling.high_frequency_factor);
  scaling.beta_fast = rope.number("beta_fast", scaling.beta_fast);
  scaling.beta_slow = rope.number("beta_slow", scaling.beta_slow);
  scaling.whole_channels = rope.boolean("truncate", true);
  scaling.magnitude = rope.number("attention_factor", 0);
  return scaling;
}

RopeScaling gguf_rope_scaling(const io::GgufFile& file, const std::string& prefix, double context,
                              const std::string& origin) {
  RopeScaling scaling;
  const std::string key = prefix + "rope.scaling.";
  scaling.kind = parse_rope_scaling(file.string(key + "type", "none"), origin);
  scaling.factor = file.number(key + "factor", file.number(prefix + "rope.scale_linear", 1.0));
  if (scaling.factor == 0) scaling.factor = 1;  // what converters write for "none"
  if (scaling.kind == RopeScaling::Kind::none && scaling.factor != 1 && file.find(key + "type") == nullptr)
    scaling.kind = RopeScaling::Kind::linear;
  scaling.original_context = file.number(key + "original_context_length", context);
  scaling.beta_fast = file.number(key + "yarn_beta_fast", scaling.beta_fast);
  scaling.beta_slow = file.number(key + "yarn_beta_slow", scaling.beta_slow);
  if (scaling.kind == RopeScaling::Kind::yarn)
    scaling.magnitude =
        file.number(key + "attn_factor", 1.0) * (0.1 * std::log(std::max(scaling.factor, 1.0)) + 1);
  return scaling;
}

}  // namespace

ModelConfig ModelConfig::from_gguf(const io::GgufFile& file, const std::string& origin) {
  ModelConfig config;
  const std::string family = file.string("general.architecture");
  config.architecture = runner_architecture(family, origin);
  config.name = file.string("general.name", "");
  const std::string prefix = family + ".";
  config.layers = file.integer(prefix + "block_count");
  config.embedding = file.integer(prefix + "embedding_length");
  config.feed_forward = file.integer(prefix + "feed_forward_length");
  config.heads_q = file.integer(prefix + "attention.head_count");
  config.heads_kv = file.integer(prefix + "attention.head_count_kv", config.heads_q);
  require(config.heads_q >= 1, origin, ": ", prefix, "attention.head_count is ", config.heads_q);
  config.dim = file.integer(prefix + "attention.key_length", config.embedding / config.heads_q);
  require(file.integer(prefix + "attention.value_length", config.dim) == config.dim, origin,
          ": keys and values of different width are not supported");
  require(file.integer(prefix + "rope.dimension_count", config.dim) == config.dim, origin, ": ", prefix,
          "rope.dimension_count is ", file.integer(prefix + "rope.dimension_count", config.dim),
          ", a head has ", config.dim, " channels: partial rotation is not supported");
  require(file.integer(prefix + "expert_count", 0) == 0, origin, ": mixtures of experts are not supported");
  config.context = file.integer(prefix + "context_length");
  config.rms_epsilon = file.number(prefix + "attention.layer_norm_rms_epsilon");
  config.rope_theta = file.number(prefix + "rope.freq_base", 10000.0);
  config.rope_scaling = gguf_rope_scaling(file, prefix, static_cast<double>(config.context), origin);
  if (const int64_t window = file.integer(prefix + "attention.sliding_window", 0); window > 0)
    config.context = std::min(config.context, window);
  config.vocabulary = file.integer(prefix + "vocab_size", 0);
  config.tied_embeddings = file.tensor("output.weight") == nullptr;
  config.validate(origin);
  return config;
}

ModelConfig ModelConfig::from_json(const std::string& text, const std::string& origin) {
  const Json document = Json::parse(text, nullptr, false);
  require(document.is_object(), origin, ": is not a JSON object");
  const JsonReader json(document, origin);
  ModelConfig config;
  config.architecture = runner_architecture(json.text("model_type", ""), origin);
  config.name = json.text("_name_or_path", "");
  config.layers = json.integer("num_hidden_layers");
  config.embedding = json.integer("hidden_size");
  config.feed_forward = json.integer("intermediate_size");
  config.heads_q = json.integer("num_attention_heads");
  config.heads_kv = json.integer("num_key_value_heads", config.heads_q);
  require(config.heads_q >= 1, origin, ": num_attention_heads is ", config.heads_q);
  config.dim = json.integer("head_dim", config.embedding / config.heads_q);
  config.context = json.integer("max_position_embeddings");
  config.vocabulary = json.integer("vocab_size");
  config.rms_epsilon = json.number("rms_norm_eps");
  config.rope_theta = json.number("rope_theta", 10000.0);
  config.tied_embeddings = json.boolean("tie_word_embeddings", false);
  const std::string activation = json.text("hidden_act", "silu");
  require(activation == "silu", origin, ": hidden_act '", activation, "' is not supported (silu is)");
  require(!json.boolean("mlp_bias", false), origin, ": mlp_bias is not supported");
  require(json.number("partial_rotary_factor", 1.0) == 1.0, origin,
          ": partial_rotary_factor other than 1 is not supported");
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (!json.has(key)) continue;
    const JsonReader rope = json.object(key);
    config.rope_theta = rope.number("rope_theta", config.rope_theta);
    config.rope_scaling = json_rope_scaling(rope, static_cast<double>(config.context), origin);
  }
  if (json.has("sliding_window") && json.boolean("use_sliding_window", true))
    config.context = std::min(config.context, json.integer("sliding_window"));
  config.validate(origin);
  return config;
}

void ModelConfig::validate(const std::string& origin) const {
  const auto within = [&](const char* what, int64_t value, int64_t high) {
    require(value >= 1 && value <= high, origin, ": ", what, " = ", value, " is outside 1..", high);
  };
  within("number of layers", layers, 1024);
  within("embedding width", embedding, 1 << 17);
  within("feed-forward width", feed_forward, 1 << 20);
  within("number of query heads", heads_q, 1 << 12);
  within("number of key/value heads", heads_kv, 1 << 12);
  within("head width", dim, 1 << 12);
  within("context length", context, int64_t{1} << 30);
  require(vocabulary >= 0 && vocabulary <= 1 << 24, origin, ": vocabulary of ", vocabulary, " is outside 0..",
          1 << 24);
  require(heads_q % heads_kv == 0, origin, ": ", heads_q, " query heads are not a multiple of ", heads_kv,
          " key/value heads");
  require(dim % 2 == 0, origin, ": head width ", dim, " is odd");
  require(std::isfinite(rms_epsilon) && rms_epsilon > 0 && rms_epsilon < 1, origin, ": RMS norm epsilon ",
          rms_epsilon, " is outside 0..1");
  require(std::isfinite(rope_theta) && rope_theta > 1, origin, ": rope base ", rope_theta, " is not above 1");
  make_rope(rope_scaling, dim, rope_theta, context);  // refuses impossible scalings
}

}  // namespace fovea::model
