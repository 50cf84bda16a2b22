// SPDX-License-Identifier: Apache-2.0
// What goes into a benchmark's inputs. Floats are seeded normals; the table below knows the tensors whose
// values must make sense.
#include <cmath>

#include "cli/bench_problem.h"
#include "fovea/core/rng.h"

namespace fovea::cli {
namespace {

constexpr uint64_t kSeed = 20240711;

using Maker = Tensor (*)(const BenchInput& input, uint64_t stream);

// values(i) of every element i, in the type of the input.
template <typename Values>
Tensor filled(const BenchInput& input, Values values) {
  const Tensor tensor = Tensor::empty(input.shape, input.dtype);
  const int64_t count = tensor.size();
  const auto fill = [&](auto* data) {
    for (int64_t i = 0; i < count; ++i)
      data[i] = static_cast<std::remove_reference_t<decltype(*data)>>(values(i));
  };
  switch (input.dtype) {
    case DType::i8:
      fill(tensor.data<int8_t>());
      return tensor;
    case DType::u8:
      fill(tensor.data<uint8_t>());
      return tensor;
    case DType::i32:
      fill(tensor.data<int32_t>());
      return tensor;
    case DType::i64:
      fill(tensor.data<int64_t>());
      return tensor;
    default: {
      const Tensor floats = Tensor::empty(input.shape, DType::f32);
      for (int64_t i = 0; i < count; ++i) floats.data<float>()[i] = static_cast<float>(values(i));
      return floats.to(input.dtype);
    }
  }
}

Tensor zeros(const BenchInput& input, uint64_t) {
  return filled(input, [](int64_t) { return 0; });
}
Tensor ones(const BenchInput& input, uint64_t) {
  return filled(input, [](int64_t) { return 1; });
}
Tensor halves(const BenchInput& input, uint64_t) {
  return filled(input, [](int64_t) { return 0.5; });
}
Tensor counting(const BenchInput& input, uint64_t) {
  return filled(input, [](int64_t i) { return i; });
}
Tensor alternating(const BenchInput& input, uint64_t) {
  return filled(input, [](int64_t i) { return 1 - i % 2; });
}
Tensor bytes(const BenchInput& input, uint64_t stream) {
  const Rng rng(kSeed, stream);
  return filled(input, [&](int64_t i) { return rng.block(static_cast<uint64_t>(i))[0] & 0x7f; });
}
Tensor signs(const BenchInput& input, uint64_t stream) {
  const Rng rng(kSeed, stream);
  return filled(input, [&](int64_t i) { return rng.uniform(static_cast<uint64_t>(i)) < 0.5f ? -1 : 1; });
}
Tensor negatives(const BenchInput& input, uint64_t stream) {
  const Rng rng(kSeed, stream);
  return filled(input, [&](int64_t i) { return -std::abs(rng.normal(static_cast<uint64_t>(i))); });
}
Tensor positives(const BenchInput& input, uint64_t stream) {
  const Rng rng(kSeed, stream);
  return filled(input, [&](int64_t i) { return std::abs(rng.normal(static_cast<uint64_t>(i))); });
}

// A quarter of the entries of [...,rows,columns], and those on the diagonal that ends in the last corner.
Tensor random_quarter(const BenchInput& input, uint64_t stream) {
  const Rng rng(kSeed, stream);
  const int64_t columns = input.shape[input.shape.rank() - 1], rows = input.shape[input.shape.rank() - 2];
  return filled(input, [&](int64_t i) {
    const int64_t row = i / columns % rows, column = i % columns;
    return column == row + columns - rows || rng.uniform(static_cast<uint64_t>(i)) < 0.25f ? 1 : 0;
  });
}

// Candidates of a search over head patterns: (pattern, first parameter, second parameter).
Tensor pattern_candidates(const BenchInput& input, uint64_t) {
  constexpr int64_t kRows[3][3] = {{0, 128, 1024}, {1, 256, 512}, {2, 16, 0}};
  return filled(input, [&](int64_t i) { return kRows[i / 3 % 3][i % 3]; });
}

// Which of the three head patterns each head has, and budgets that each of them can use.
Tensor head_patterns(const BenchInput& input, uint64_t) {
  return filled(input, [](int64_t i) { return i % 3; });
}
Tensor head_budgets(const BenchInput& input, uint64_t) {
  return filled(input, [](int64_t i) { return i % 2 == 0 ? 16 : 32; });
}

struct Entry {
  std::string_view name;  // of the input tensor
  Maker make;
};

constexpr Entry kMakers[] = {
    {"perm", counting},
    {"sink_mask", zeros},
    {"mask", random_quarter},
    {"blocks", random_quarter},
    {"retrieval", alternating},
    {"alpha", halves},
    {"signs", signs},
    {"codes", bytes},
    {"scale", ones},
    {"scales", ones},
    {"zero", zeros},
    {"kmin", negatives},
    {"kmax", positives},
    {"labels", ones},
    {"candidates", pattern_candidates},
    {"head_pattern", head_patterns},
    {"head_budget", head_budgets},
    {"ln1_g", ones},
    {"ln2_g", ones},
};

// Offsets of n equal sequences: cu [n+1] of N rows in all.
Tensor equal_offsets(const BenchInput& input, int64_t rows) {
  const int64_t sequences = input.shape[0] - 1;
  return filled(input, [&](int64_t i) { return i * rows / std::max<int64_t>(1, sequences); });
}

// Every sequence in its second half: k_len [B] of T keys.
Tensor partial_lengths(const BenchInput& input, int64_t keys) {
  return filled(input, [&](int64_t i) { return keys - i * keys / (2 * input.shape[0]); });
}

Tensor normals(const BenchInput& input, uint64_t stream) {
  Tensor values = random_normal(input.shape, kSeed, stream);
  // Matrices of weights keep the size of what they multiply.
  if (input.shape.rank() == 2 && input.spec->name.starts_with("w")) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(input.shape[1]));
    for (int64_t i = 0; i < values.size(); ++i) values.data<float>()[i] *= scale;
  }
  return values.to(input.dtype);
}

Tensor make_input(const BenchProblem& problem, const BenchInput& input, uint64_t stream) {
  if (input.spec->name == "cu_q") return equal_offsets(input, problem.symbols.at("Nq"));
  if (input.spec->name == "cu_k") return equal_offsets(input, problem.symbols.at("Nk"));
  if (input.spec->name == "k_len") return partial_lengths(input, problem.symbols.at("Tk"));
  for (const auto& entry : kMakers)
    if (entry.name == input.spec->name) return entry.make(input, stream);
  if (is_float(input.dtype)) return normals(input, stream);
  return input.dtype == DType::u8 ? ones(input, stream) : zeros(input, stream);
}

}  // namespace

Tensors make_inputs(const BenchProblem& problem) {
  Tensors tensors;
  uint64_t stream = 0;
  for (const auto& input : problem.inputs)
    tensors.set(input.spec->name, make_input(problem, input, stream++));
  return tensors;
}

}  // namespace fovea::cli
