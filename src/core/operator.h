// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fovea/core/options.h"
#include "fovea/core/papers.h"
#include "fovea/core/tensor.h"
#include "fovea/core/tensor_spec.h"

namespace fovea {

/// Families of mechanisms; also the folders under src/.
enum class Room { kernels, dense, sparse, linear, cache, distributed, nn, model, inference, analysis, study };
std::string_view name_of(Room room);

/// Named tensors, in the order they were added.
class Tensors {
 public:
  Tensors() = default;
  Tensors(std::initializer_list<std::pair<std::string, Tensor>> items) : items_(items) {}

  /// The tensor of that name, or an undefined one.
  Tensor operator[](std::string_view name) const;
  bool contains(std::string_view name) const;
  /// Adds or replaces.
  void set(std::string name, Tensor tensor);
  auto begin() const { return items_.begin(); }
  auto end() const { return items_.end(); }
  size_t size() const { return items_.size(); }

 private:
  std::vector<std::pair<std::string, Tensor>> items_;
};

/// A question to an operator: could you run on these?
struct Problem {
  struct Input {
    std::string name;
    Shape shape;
    DType dtype;
    Device device;
  };
  std::vector<Input> inputs;
  options::Pairs options;

  static Problem of(const Tensors& inputs, const options::Pairs& options);
};

struct Support {
  bool yes = true;
  std::string reason;  ///< one sentence, when the answer is no
};

/// What an operator can do beyond its plain forward form.
enum class Form { forward, backward, decode, causal, grouped, plan };
std::string_view name_of(Form form);

/// What happens to NaN and infinity in the inputs.
enum class NonFinite { propagate, refuse };

/// One named mechanism: what goes in, what comes out, its options, and how to run it.
class Operator {
 public:
  using Runner = std::function<Tensors(const Tensors&, const options::Pairs&)>;
  using Rule = std::function<std::string(const Symbols&, const options::Pairs&)>;

  std::string name;
  Room room = Room::dense;
  int paper = 0;
  std::string summary;
  std::vector<TensorSpec> inputs, outputs;
  std::vector<options::Info> options;
  std::vector<Form> forms = {Form::forward};
  std::vector<Device::Type> devices = {Device::Type::cpu};
  NonFinite nonfinite = NonFinite::propagate;

  /// Yes, or no with the reason. The single source for dispatch, test skips, `fovea list` and the feature
  /// tables.
  Support supports(const Problem& problem) const;
  /// Validates everything, then runs. Throws Error with the first mismatch.
  Tensors run(const Tensors& inputs, const options::Pairs& options = {}) const;
  bool has(Form form) const;

 private:
  friend class OperatorBuilder;
  Runner runner_;
  std::function<void(const options::Pairs&)> check_options_;
  std::vector<Rule> rules_;
};

}  // namespace fovea
