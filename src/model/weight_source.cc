// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/weight_source.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "fovea/core/error.h"
#include "fovea/io/file.h"

namespace fovea::model {
namespace {

constexpr TensorNames kGgufNames{
    .embedding = "token_embd.weight",
    .final_norm = "output_norm.weight",
    .head = "output.weight",
    .layer = "blk.",
    .attention_norm = "attn_norm",
    .q = "attn_q",
    .k = "attn_k",
    .v = "attn_v",
    .attention_output = "attn_output",
    .q_norm = "attn_q_norm",
    .k_norm = "attn_k_norm",
    .feed_forward_norm = "ffn_norm",
    .gate = "ffn_gate",
    .up = "ffn_up",
    .down = "ffn_down",
    .ignored = "rope_freqs",
};

constexpr TensorNames kFolderNames{
    .embedding = "model.embed_tokens.weight",
    .final_norm = "model.norm.weight",
    .head = "lm_head.weight",
    .layer = "model.layers.",
    .attention_norm = "input_layernorm",
    .q = "self_attn.q_proj",
    .k = "self_attn.k_proj",
    .v = "self_attn.v_proj",
    .attention_output = "self_attn.o_proj",
    .q_norm = "self_attn.q_norm",
    .k_norm = "self_attn.k_norm",
    .feed_forward_norm = "post_attention_layernorm",
    .gate = "mlp.gate_proj",
    .up = "mlp.up_proj",
    .down = "mlp.down_proj",
    .ignored = "rotary_emb.inv_freq",
};

bool is_plain(io::GgufType type) {
  return type == io::GgufType::f32 || type == io::GgufType::f16 || type == io::GgufType::bf16;
}

class GgufSource final : public WeightSource {
 public:
  GgufSource(const io::GgufFile& file, const std::string& origin, bool dequantize)
      : WeightSource(origin), file_(file), dequantize_(dequantize) {}

  const TensorNames& names() const override { return kGgufNames; }
  bool has(const std::string& name) const override { return file_.tensor(name) != nullptr; }
  Shape shape(const std::string& name) const override { return file_.tensor(name)->shape; }
  std::vector<std::string> all() const override {
    std::vector<std::string> result;
    for (const auto& tensor : file_.tensors()) result.push_back(tensor.name);
    return result;
  }

 protected:
  Matrix read_matrix(const std::string& name) const override {
    const io::GgufTensor& tensor = *file_.tensor(name);
    if (is_plain(tensor.type)) return file_.view(tensor);
    return dequantize_ ? Matrix(file_.dequantize(tensor)) : Matrix(file_.affine(tensor));
  }
  Tensor read_vector(const std::string& name) const override { return file_.dequantize(*file_.tensor(name)); }

 private:
  const io::GgufFile& file_;
  bool dequantize_;
};

class FolderSource final : public WeightSource {
 public:
  explicit FolderSource(const std::string& folder) : WeightSource(folder) {
    for (const std::string& file : weight_files(folder)) {
      const auto contents = io::read_safetensors(folder + "/" + file);
      for (const auto& [name, tensor] : contents.tensors) {
        require(!tensors_.contains(name), folder, ": tensor '", name, "' is in more than one file");
        tensors_.emplace(name, tensor);
      }
    }
  }

  const TensorNames& names() const override { return kFolderNames; }
  bool has(const std::string& name) const override { return tensors_.contains(name); }
  Shape shape(const std::string& name) const override { return tensors_.at(name).shape(); }
  std::vector<std::string> all() const override {
    std::vector<std::string> result;
    for (const auto& [name, tensor] : tensors_) result.push_back(name);
    return result;
  }

 protected:
  Matrix read_matrix(const std::string& name) const override { return floats(name); }
  Tensor read_vector(const std::string& name) const override { return floats(name).to(DType::f32).clone(); }

 private:
  /// File names inside `folder`, each once; an index may not point outside it.
  static std::vector<std::string> weight_files(const std::string& folder) {
    const std::string index = folder + "/model.safetensors.index.json";
    std::string text;
    try {
      text = io::read_text(index);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::not_found) throw;
      return {"model.safetensors"};
    }
    const auto document = nlohmann::json::parse(text, nullptr, false);
    require(document.is_object() && document.contains("weight_map") && document["weight_map"].is_object(),
            index, ": has no 'weight_map' object");
    std::set<std::string> files;
    for (const auto& [tensor, file] : document["weight_map"].items()) {
      require(file.is_string(), index, ": the file of '", tensor, "' is not a string");
      const auto name = file.get<std::string>();
      require(!name.empty() && name.find('/') == std::string::npos && name.find("..") == std::string::npos,
              index, ": '", name, "' is not a file name inside the folder");
      files.insert(name);
    }
    return {files.begin(), files.end()};
  }

  const Tensor& floats(const std::string& name) const {
    const Tensor& tensor = tensors_.at(name);
    require(is_float(tensor.dtype()), origin(), ": tensor '", name, "' is ", tensor.describe(),
            ", expected f32, f16 or bf16");
    return tensor;
  }

  std::map<std::string, Tensor> tensors_;
};

/// to[to_row(i)] = from[from_row(i)] for i < count; `to` is contiguous.
template <typename FromRow, typename ToRow>
void copy_rows(const Tensor& from, const Tensor& to, int64_t count, const FromRow& from_row,
               const ToRow& to_row) {
  const int64_t bytes = from.dim(1) * size_of(from.dtype()), stride = from.stride(0) * size_of(from.dtype());
  const auto* source = static_cast<const std::byte*>(from.raw());
  auto* target = static_cast<std::byte*>(to.raw());
  for (int64_t i = 0; i < count; ++i)
    std::memcpy(target + to_row(i) * bytes, source + from_row(i) * stride, static_cast<size_t>(bytes));
}

/// A function of every tensor of a matrix, all of which have one row per row of the matrix.
template <typename Function>
Matrix map_tensors(const Matrix& matrix, int64_t rows, const Function& function) {
  if (const auto* plain = std::get_if<Tensor>(&matrix))
    return function(*plain, [](const Matrix& m) { return std::get<Tensor>(m); });
  const auto member = [](Tensor kernels::AffineWeight::*field) {
    return [field](const Matrix& m) { return std::get<kernels::AffineWeight>(m).*field; };
  };
  kernels::AffineWeight result = std::get<kernels::AffineWeight>(matrix);
  result.rows = rows;
  result.codes = function(result.codes, member(&kernels::AffineWeight::codes));
  result.scale = function(result.scale, member(&kernels::AffineWeight::scale));
  result.offset = function(result.offset, member(&kernels::AffineWeight::offset));
  return result;
}

Tensor empty_like(const Tensor& tensor, int64_t rows) {
  return Tensor::empty({rows, tensor.dim(1)}, tensor.dtype());
}

}  // namespace

void WeightSource::check(const std::string& name, const Shape& expected) const {
  require(has(name), origin_, ": tensor '", name, "' is missing");
  require(shape(name) == expected, origin_, ": tensor '", name, "' has shape ", shape(name).to_string(),
          ", expected ", expected.to_string());
}

Matrix WeightSource::matrix(const std::string& name, int64_t rows, int64_t columns) const {
  check(name, {rows, columns});
  return read_matrix(name);
}

Tensor WeightSource::vector(const std::string& name, int64_t size) const {
  check(name, {size});
  return read_vector(name);
}

std::unique_ptr<WeightSource> gguf_source(const io::GgufFile& file, const std::string& origin,
                                          bool dequantize) {
  return std::make_unique<GgufSource>(file, origin, dequantize);
}

std::unique_ptr<WeightSource> folder_source(const std::string& folder) {
  return std::make_unique<FolderSource>(folder);
}

int64_t rows_of(const Matrix& matrix) {
  if (const auto* plain = std::get_if<Tensor>(&matrix)) return plain->dim(0);
  return std::get<kernels::AffineWeight>(matrix).rows;
}

bool can_stack(std::span<const Matrix> parts) {
  const auto alike = [&](const Matrix& part) {
    if (part.index() != parts[0].index()) return false;
    if (const auto* plain = std::get_if<Tensor>(&part))
      return plain->dtype() == std::get<Tensor>(parts[0]).dtype();
    const auto& a = std::get<kernels::AffineWeight>(part);
    const auto& b = std::get<kernels::AffineWeight>(parts[0]);
    return a.bits == b.bits && a.group == b.group;
  };
  return std::all_of(parts.begin(), parts.end(), alike);
}

Matrix stack(std::span<const Matrix> parts) {
  int64_t rows = 0;
  for (const Matrix& part : parts) rows += rows_of(part);
  return map_tensors(parts[0], rows, [&](const Tensor& first, const auto& tensor_of) {
    Tensor result = empty_like(first, rows);
    int64_t begin = 0;
    for (const Matrix& part : parts) {
      const Tensor tensor = tensor_of(part);
      copy_rows(
          tensor, result, tensor.dim(0), [](int64_t i) { return i; }, [&](int64_t i) { return begin + i; });
      begin += tensor.dim(0);
    }
    return result;
  });
}

Matrix permute_rows(const Matrix& matrix, std::span<const int64_t> order) {
  const int64_t rows = static_cast<int64_t>(order.size());
  require(rows == rows_of(matrix), "permute_rows: ", rows, " positions for ", rows_of(matrix), " rows");
  return map_tensors(matrix, rows, [&](const Tensor& tensor, const auto&) {
    Tensor result = empty_like(tensor, rows);
    copy_rows(
        tensor, result, rows, [&](int64_t i) { return order[static_cast<size_t>(i)]; },
        [](int64_t i) { return i; });
    return result;
  });
}

}  // namespace fovea::model
