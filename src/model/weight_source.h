// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "fovea/core/tensor.h"
#include "fovea/io/gguf.h"
#include "fovea/io/safetensors.h"
#include "fovea/kernels/matmul.h"

namespace fovea::model {

/// A weight matrix as its file holds it: floats, or blocks of scaled integers.
using Matrix = std::variant<Tensor, kernels::AffineWeight>;

/// What the tensors of a decoder are called in a kind of file. Names of a layer's tensors follow
/// `layer` + index + ".".
struct TensorNames {
  std::string_view embedding, final_norm, head, layer;
  std::string_view attention_norm, q, k, v, attention_output, q_norm, k_norm;
  std::string_view feed_forward_norm, gate, up, down;
  std::string_view ignored;  ///< tensors whose name contains this carry nothing that the runner needs
};

/// The tensors of a model file by name, checked for shape when taken.
class WeightSource {
 public:
  virtual ~WeightSource() = default;

  virtual const TensorNames& names() const = 0;
  virtual bool has(const std::string& name) const = 0;
  /// Shape of a tensor that exists.
  virtual Shape shape(const std::string& name) const = 0;
  virtual std::vector<std::string> all() const = 0;
  const std::string& origin() const { return origin_; }

  Matrix matrix(const std::string& name, int64_t rows, int64_t columns) const;
  /// A copy in f32.
  Tensor vector(const std::string& name, int64_t size) const;

 protected:
  explicit WeightSource(std::string origin) : origin_(std::move(origin)) {}
  virtual Matrix read_matrix(const std::string& name) const = 0;
  virtual Tensor read_vector(const std::string& name) const = 0;
  void check(const std::string& name, const Shape& expected) const;

 private:
  std::string origin_;
};

/// `file` must outlive the source. `dequantize`: all matrices as f32.
std::unique_ptr<WeightSource> gguf_source(const io::GgufFile& file, const std::string& origin,
                                          bool dequantize);
std::unique_ptr<WeightSource> folder_source(const std::string& folder);

/// The matrices one above the other, if they are of one format; an empty vector of parts otherwise keeps them
/// apart.
bool can_stack(std::span<const Matrix> parts);
Matrix stack(std::span<const Matrix> parts);
/// Row i of the result is row order[i].
Matrix permute_rows(const Matrix& matrix, std::span<const int64_t> order);
int64_t rows_of(const Matrix& matrix);

}  // namespace fovea::model
