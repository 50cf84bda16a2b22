// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/model.h"

#include <filesystem>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "fovea/core/error.h"
#include "fovea/io/file.h"
#include "fovea/io/gguf.h"
#include "fovea/model/head_gates.h"
#include "fovea/model/weights.h"

namespace fovea::model {

struct Model::State {
  ModelConfig config;
  Weights weights;
  std::optional<Tokenizer> tokenizer;
  std::string chat_template;
  mutable std::mutex mutex;
  mutable std::map<std::pair<int64_t, int64_t>, Tensor> gates;  // by (sink, recent)

  void load_gguf(const std::string& path, bool dequantize) {
    const io::GgufFile file = io::GgufFile::read(path);
    config = ModelConfig::from_gguf(file, path);
    weights = Weights::from_gguf(file, config, path, dequantize);
    if (file.find("tokenizer.ggml.model") != nullptr) tokenizer = Tokenizer::from_gguf(file);
    chat_template = file.string("tokenizer.chat_template", "");
  }

  void load_folder(const std::string& folder) {
    const std::string config_path = folder + "/config.json";
    config = ModelConfig::from_json(io::read_text(config_path), config_path);
    weights = Weights::from_folder(folder, config);
    const std::string path = folder + "/tokenizer.json", extra = folder + "/tokenizer_config.json";
    const bool has_extra = std::filesystem::exists(extra);
    if (std::filesystem::exists(path)) tokenizer = Tokenizer::from_json(path, has_extra ? extra : "");
    if (!has_extra) return;
    const auto document = nlohmann::json::parse(io::read_text(extra), nullptr, false);
    if (document.is_object() && document.contains("chat_template") && document["chat_template"].is_string())
      chat_template = document["chat_template"].get<std::string>();
  }
};

Model::Model() : state_(std::make_unique<State>()) {}
Model::~Model() = default;

std::shared_ptr<const Model> Model::load(const std::string& path, const LoadOptions& options) {
  std::shared_ptr<Model> model(new Model());
  State& state = *model->state_;
  if (std::filesystem::is_directory(path))
    state.load_folder(path);
  else
    state.load_gguf(path, options.dequantize);
  const int64_t vocabulary = state.config.vocabulary;
  require(!state.tokenizer || state.tokenizer->vocabulary_size() <= vocabulary, path, ": the tokenizer has ",
          state.tokenizer ? state.tokenizer->vocabulary_size() : 0, " tokens, the embedding only ",
          vocabulary, " rows");
  return model;
}

const ModelConfig& Model::config() const { return state_->config; }
const Weights& Model::weights() const { return state_->weights; }
const std::string& Model::chat_template() const { return state_->chat_template; }
int64_t Model::bytes() const { return state_->weights.bytes(); }

const Tokenizer& Model::tokenizer() const {
  if (!state_->tokenizer) throw Error("the model has no tokenizer (tokenizer.json)", ErrorCode::not_found);
  return *state_->tokenizer;
}

Tensor Model::head_gates(int64_t sink, int64_t recent) const {
  std::lock_guard lock(state_->mutex);
  Tensor& gates = state_->gates[{sink, recent}];
  if (!gates) gates = measure_head_gates(*this, sink, recent);
  return gates;
}

}  // namespace fovea::model
