// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/weights.h"

#include <algorithm>
#include <set>

#include "fovea/core/error.h"
#include "fovea/core/thread_pool.h"
#include "fovea/io/gguf.h"
#include "fovea/model/weight_source.h"

namespace fovea::model {
namespace {

/// Weights that come in bf16 may be multiplied in bf16; wider ones keep their precision.
std::unique_ptr<kernels::Linear> make(const Matrix& matrix) {
  if (const auto* plain = std::get_if<Tensor>(&matrix))
    return kernels::make_linear(*plain, plain->dtype() == DType::bf16);
  return kernels::make_linear(std::get<kernels::AffineWeight>(matrix));
}

Projection make_projection(std::vector<Matrix> parts) {
  Projection result;
  if (parts.size() > 1 && can_stack(parts))
    result.add(make(stack(parts)));
  else
    for (const Matrix& part : parts) result.add(make(part));
  return result;
}

Tensor permuted(const Tensor& bias, const std::vector<int64_t>& order) {
  Tensor result = Tensor::empty(bias.shape());
  for (size_t i = 0; i < order.size(); ++i)
    result.at<float>(static_cast<int64_t>(i)) = bias.at<float>(order[i]);
  return result;
}

/// Takes the tensors of a decoder from a source and remembers which, so that what is left over is noticed: a
/// tensor that the runner would ignore means a model that it would run wrongly.
class Loader {
 public:
  Loader(const WeightSource& source, ModelConfig& config, bool interleaved)
      : source_(source), names_(source.names()), config_(config), interleaved_(interleaved) {}

  Weights load() {
    Weights weights;
    const std::string embedding(names_.embedding);
    require(source_.has(embedding), source_.origin(), ": tensor '", embedding, "' is missing");
    if (config_.vocabulary == 0 && source_.shape(embedding).rank() == 2)
      config_.vocabulary = source_.shape(embedding)[0];
    weights.embedding = make(matrix(embedding, config_.vocabulary, config_.embedding, taken_));
    const std::string head(names_.head);
    if (config_.tied_embeddings) {
      weights.head = weights.embedding;
      taken_.insert(head);  // some files store the tied matrix twice
    } else {
      weights.head = make(matrix(head, config_.vocabulary, config_.embedding, taken_));
    }
    weights.final_norm = vector(std::string(names_.final_norm), config_.embedding, taken_);
    // Every layer notes its tensors in a list of its own.
    weights.layers.resize(static_cast<size_t>(config_.layers));
    std::vector<Taken> taken(weights.layers.size());
    parallel_for(config_.layers, [&](int64_t layer, int) {
      const auto index = static_cast<size_t>(layer);
      weights.layers[index] = load_layer(layer, taken[index]);
    });
    for (Taken& names : taken) taken_.merge(names);
    refuse_leftovers();
    return weights;
  }

 private:
  using Taken = std::set<std::string>;

  std::string name(int64_t layer, std::string_view stem, const char* suffix = ".weight") const {
    return std::string(names_.layer) + std::to_string(layer) + "." + std::string(stem) + suffix;
  }
  Matrix matrix(const std::string& tensor, int64_t rows, int64_t columns, Taken& taken) const {
    taken.insert(tensor);
    return source_.matrix(tensor, rows, columns);
  }
  Tensor vector(const std::string& tensor, int64_t size, Taken& taken) const {
    taken.insert(tensor);
    return source_.vector(tensor, size);
  }

  LayerWeights load_layer(int64_t layer, Taken& taken) const {
    const int64_t e = config_.embedding, f = config_.feed_forward, d = config_.dim;
    LayerWeights weights;
    weights.attention_norm = vector(name(layer, names_.attention_norm), e, taken);
    weights.feed_forward_norm = vector(name(layer, names_.feed_forward_norm), e, taken);
    if (config_.has_head_norms()) {
      weights.q_norm = vector(name(layer, names_.q_norm), d, taken);
      weights.k_norm = vector(name(layer, names_.k_norm), d, taken);
    }
    weights.qkv = load_qkv(layer, taken);
    weights.attention_output =
        make_projection({matrix(name(layer, names_.attention_output), e, config_.heads_q * d, taken)});
    weights.gate_up = make_projection(
        {matrix(name(layer, names_.gate), f, e, taken), matrix(name(layer, names_.up), f, e, taken)});
    weights.down = make_projection({matrix(name(layer, names_.down), e, f, taken)});
    return weights;
  }

  Projection load_qkv(int64_t layer, Taken& taken) const {
    const int64_t d = config_.dim;
    const std::string_view stems[] = {names_.q, names_.k, names_.v};
    const int64_t heads[] = {config_.heads_q, config_.heads_kv, config_.heads_kv};
    const bool biased = config_.needs_qkv_bias() || source_.has(name(layer, names_.q, ".bias"));
    std::vector<Matrix> parts;
    Tensor bias = Tensor::empty({(config_.heads_q + 2 * config_.heads_kv) * d});
    int64_t begin = 0;
    for (int part = 0; part < 3; ++part) {
      const int64_t rows = heads[part] * d;
      const bool reorder = interleaved_ && part < 2;
      const auto order = half_split_order(heads[part], d);
      Matrix weight = matrix(name(layer, stems[part]), rows, config_.embedding, taken);
      parts.push_back(reorder ? permute_rows(weight, order) : std::move(weight));
      if (biased) {
        const Tensor values = vector(name(layer, stems[part], ".bias"), rows, taken);
        bias.slice(0, begin, begin + rows).copy_from(reorder ? permuted(values, order) : values);
      }
      begin += rows;
    }
    Projection result = make_projection(std::move(parts));
    if (biased) result.set_bias(bias);
    return result;
  }

  void refuse_leftovers() const {
    for (const std::string& tensor : source_.all())
      if (!taken_.contains(tensor) && tensor.find(names_.ignored) == std::string::npos)
        throw Error(source_.origin() + ": tensor '" + tensor + "' has no place in a " + config_.architecture +
                        " model of " + std::to_string(config_.layers) + " layers",
                    ErrorCode::unsupported);
  }

  const WeightSource& source_;
  const TensorNames& names_;
  ModelConfig& config_;
  bool interleaved_;
  Taken taken_;
};

}  // namespace

void Projection::add(std::unique_ptr<kernels::Linear> part) {
  rows_ += part->rows();
  parts_.push_back(std::move(part));
}

void Projection::apply(const Tensor& x, const Tensor& y) const {
  int64_t begin = 0;
  for (const auto& part : parts_) {
    part->apply(x, y.slice(1, begin, begin + part->rows()));
    begin += part->rows();
  }
  if (!bias_) return;
  const float* bias = bias_.data<float>();
  parallel_for(y.dim(0), [&](int64_t row, int) {
    float* out = y.data<float>() + row * y.stride(0);
    for (int64_t i = 0; i < rows_; ++i) out[i] += bias[i];
  });
}

int64_t Projection::bytes() const {
  int64_t total = bias_ ? bias_.bytes() : 0;
  for (const auto& part : parts_) total += part->bytes();
  return total;
}

int64_t Weights::bytes() const {
  int64_t total = embedding->bytes() + (head == embedding ? 0 : head->bytes()) + final_norm.bytes();
  for (const LayerWeights& layer : layers)
    total += layer.attention_norm.bytes() + layer.feed_forward_norm.bytes() + layer.qkv.bytes() +
             layer.attention_output.bytes() + layer.gate_up.bytes() + layer.down.bytes();
  return total;
}

Weights Weights::from_gguf(const io::GgufFile& file, ModelConfig& config, const std::string& origin,
                           bool dequantize) {
  const auto source = gguf_source(file, origin, dequantize);
  if (const io::GgufTensor* divisors = file.tensor("rope_freqs.weight")) {
    require(divisors->shape == Shape{config.dim / 2}, origin, ": tensor 'rope_freqs.weight' has shape ",
            divisors->shape.to_string(), ", expected ", Shape{config.dim / 2}.to_string());
    const Tensor values = file.dequantize(*divisors);
    config.rope_scaling.divisors.assign(values.data<float>(), values.data<float>() + values.size());
  }
  // GGUF's llama models have q and k rows in interleaved order, the other families in half-split order.
  return Loader(*source, config, config.architecture == "llama").load();
}

Weights Weights::from_folder(const std::string& folder, ModelConfig& config) {
  return Loader(*folder_source(folder), config, false).load();
}

std::vector<int64_t> half_split_order(int64_t heads, int64_t dim) {
  std::vector<int64_t> order;
  for (int64_t head = 0; head < heads; ++head)
    for (int64_t half = 0; half < 2; ++half)
      for (int64_t pair = 0; pair < dim / 2; ++pair) order.push_back(head * dim + 2 * pair + half);
  return order;
}

}  // namespace fovea::model
