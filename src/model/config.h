// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "fovea/model/rope_scaling.h"

namespace fovea::io {
class GgufFile;
}

namespace fovea::model {

/// The hyper-parameters of a decoder of the Llama family: RMS norms, rotary embedding, grouped heads, SwiGLU.
struct ModelConfig {
  std::string architecture;  ///< llama (also Mistral and SmolLM2), qwen2 or qwen3
  std::string name;          ///< as the file calls it; may be empty
  int64_t layers = 0;
  int64_t embedding = 0;     ///< E
  int64_t feed_forward = 0;  ///< width between gate/up and down
  int64_t heads_q = 0, heads_kv = 0;
  int64_t dim = 0;         ///< channels of a head, all of them rotated; heads_q * dim need not be E
  int64_t vocabulary = 0;  ///< 0 until the weights are seen, where the file does not say
  int64_t context = 0;     ///< tokens the model was made for; a sliding window that the file asks for caps it
  double rms_epsilon = 1e-5;
  double rope_theta = 10000;
  RopeScaling rope_scaling;
  bool tied_embeddings = false;  ///< the output matrix is the embedding

  bool needs_qkv_bias() const { return architecture == "qwen2"; }
  bool has_head_norms() const { return architecture == "qwen3"; }

  /// From GGUF metadata (general.architecture llama, mistral, qwen2, qwen3). Throws Error that names the key.
  static ModelConfig from_gguf(const io::GgufFile& file, const std::string& origin);
  /// From the text of a config.json; `origin` names it in errors.
  static ModelConfig from_json(const std::string& text, const std::string& origin);

  /// Throws Error for sizes that no model has, or that do not fit together.
  void validate(const std::string& origin) const;
};

}  // namespace fovea::model
