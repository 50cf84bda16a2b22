// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fovea/core/tensor.h"
#include "fovea/kernels/matmul.h"
#include "fovea/model/config.h"

namespace fovea::io {
class GgufFile;
}

namespace fovea::model {

/// Several matrices that multiply the same input, their outputs side by side: one product where their formats
/// agree, so that a decode step wakes the threads once.
class Projection {
 public:
  void add(std::unique_ptr<kernels::Linear> part);
  void set_bias(Tensor bias) { bias_ = std::move(bias); }

  /// x [T,K] f32 -> y [T,N] f32, rows of any stride.
  void apply(const Tensor& x, const Tensor& y) const;
  int64_t rows() const { return rows_; }
  int64_t bytes() const;

 private:
  std::vector<std::unique_ptr<kernels::Linear>> parts_;
  Tensor bias_;  // [N], may be undefined
  int64_t rows_ = 0;
};

struct LayerWeights {
  Tensor attention_norm, feed_forward_norm;  // [E]
  Tensor q_norm, k_norm;                     // [D], where the architecture has them
  Projection qkv;                            // [(Hq + 2 Hkv) D, E]
  Projection attention_output;               // [E, Hq D]
  Projection gate_up;                        // [2 F, E]
  Projection down;                           // [E, F]
};

/// All weights of a decoder, ready to multiply. Matrices keep the block format of their file; rows of q and k
/// are in the order of half-split rope whatever the file's order is.
struct Weights {
  std::shared_ptr<const kernels::Linear> embedding, head;  // [V,E]; the same object when tied
  Tensor final_norm;                                       // [E]
  std::vector<LayerWeights> layers;

  int64_t bytes() const;

  /// Throws one Error that names the tensor that is missing, misshapen or unknown. `config.vocabulary` is set
  /// from the embedding where it is 0.
  static Weights from_gguf(const io::GgufFile& file, ModelConfig& config, const std::string& origin,
                           bool dequantize = false);
  /// From model.safetensors or the files that model.safetensors.index.json lists.
  static Weights from_folder(const std::string& folder, ModelConfig& config);
};

/// Row order that turns rows stored for interleaved rope (pairs 2m, 2m+1 of each head) into half-split order
/// (pairs m, m + D/2): result row i is stored row order[i].
std::vector<int64_t> half_split_order(int64_t heads, int64_t dim);

}  // namespace fovea::model
