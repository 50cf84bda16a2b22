// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "fovea/core/tensor.h"
#include "fovea/model/config.h"
#include "fovea/model/tokenizer.h"

namespace fovea::model {

struct Weights;

struct LoadOptions {
  /// Multiply quantised matrices in f32 instead of as they are: no rounding of activations to 8 bits, for
  /// about six times the memory. What fidelity is measured against. Only GGUF files have such matrices.
  bool dequantize = false;
};

/// A language model at rest: hyper-parameters, weights and tokenizer. Immutable; any number of sessions share
/// one.
class Model {
 public:
  /// A GGUF file, or a folder with config.json, model.safetensors (whole, or in parts with
  /// model.safetensors.index.json) and tokenizer.json. Throws Error for anything that the runner would run
  /// wrongly: an architecture it does not know, missing, misshapen or surplus tensors, absurd sizes.
  static std::shared_ptr<const Model> load(const std::string& path, const LoadOptions& options = {});

  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const ModelConfig& config() const;
  const Weights& weights() const;
  /// Throws Error(not_found) when the folder had no tokenizer.json.
  const Tokenizer& tokenizer() const;
  /// The template as the file holds it; empty when it has none. See recognise_chat_template.
  const std::string& chat_template() const;
  /// Bytes of the weights in memory.
  int64_t bytes() const;

  /// How much each kv head needs the keys outside `sink` first and `recent` last tokens: f32 [L,Hkv], see
  /// measure_head_gates. Measured on first use and kept as long as the model lives; may be called from
  /// several threads.
  Tensor head_gates(int64_t sink, int64_t recent) const;

 private:
  struct State;
  Model();
  std::unique_ptr<State> state_;
};

}  // namespace fovea::model
