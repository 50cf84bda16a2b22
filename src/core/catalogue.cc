// SPDX-License-Identifier: Apache-2.0
#include "fovea/core/catalogue.h"

#include <algorithm>
#include <bit>
#include <numeric>

// One line for each pair of files that registers operators: ENTRY(room, file stem).
#define FOVEA_REGISTRATIONS(ENTRY)         \
  ENTRY(cache, duo_attention)              \
  ENTRY(cache, quest)                      \
  ENTRY(cache, rotatekv)                   \
  ENTRY(dense, flash_attention)            \
  ENTRY(dense, fp8_attention)              \
  ENTRY(dense, memory_efficient_attention) \
  ENTRY(sparse, minference)                \
  ENTRY(sparse, plan_attention)            \
  ENTRY(sparse, sparse_transformer)        \
  ENTRY(sparse, sparse_transformer_block)

#define FOVEA_DECLARE(room, stem)             \
  namespace fovea::room {                     \
  void register_##stem(Catalogue& catalogue); \
  }
FOVEA_REGISTRATIONS(FOVEA_DECLARE)
#undef FOVEA_DECLARE

namespace fovea {

const Catalogue& catalogue() {
  static const Catalogue instance = [] {
    Catalogue all;
#define FOVEA_REGISTER(room, stem) room::register_##stem(all);
    FOVEA_REGISTRATIONS(FOVEA_REGISTER)
#undef FOVEA_REGISTER
    return all;
  }();
  return instance;
}

Operator& Catalogue::emplace(std::string name, Room room, int paper) {
  FOVEA_ASSERT(find(name) == nullptr);
  auto& op = *operators_.emplace_back(std::make_unique<Operator>());
  op.name = std::move(name);
  op.room = room;
  op.paper = paper;
  return op;
}

const Operator* Catalogue::find(std::string_view name) const {
  const auto found =
      std::find_if(operators_.begin(), operators_.end(), [&](const auto& op) { return op->name == name; });
  return found == operators_.end() ? nullptr : found->get();
}

const Operator& Catalogue::at(std::string_view name) const {
  if (const Operator* op = find(name)) return *op;
  std::vector<std::string> names;
  for (const auto& op : operators_) names.push_back(op->name);
  const std::string near = nearest_name(name, names);
  throw Error("no operator is called '" + std::string(name) + "'" +
                  (near.empty() ? "; `fovea list` shows all" : "; did you mean '" + near + "'?"),
              ErrorCode::not_found);
}

std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, name.size() / 3) + 1;
  for (const auto& candidate : candidates) {
    std::vector<size_t> row(candidate.size() + 1);
    std::iota(row.begin(), row.end(), size_t{0});
    for (size_t i = 1; i <= name.size(); ++i) {
      size_t diagonal = std::exchange(row[0], i);
      for (size_t j = 1; j <= candidate.size(); ++j) {
        const size_t replaced = diagonal + (name[i - 1] != candidate[j - 1]);
        diagonal = row[j];
        row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
      }
    }
    if (row.back() < best_distance) {
      best_distance = row.back();
      best = candidate;
    }
  }
  return best;
}

OperatorBuilder& OperatorBuilder::summary(std::string text) {
  op_.summary = std::move(text);
  return *this;
}

OperatorBuilder& OperatorBuilder::inputs(std::initializer_list<const char*> specs) {
  for (const char* spec : specs) op_.inputs.push_back(TensorSpec::parse(spec));
  return *this;
}

OperatorBuilder& OperatorBuilder::outputs(std::initializer_list<const char*> specs) {
  for (const char* spec : specs) op_.outputs.push_back(TensorSpec::parse(spec));
  return *this;
}

OperatorBuilder& OperatorBuilder::forms(std::initializer_list<Form> forms) {
  op_.forms.insert(op_.forms.end(), forms);
  return *this;
}

OperatorBuilder& OperatorBuilder::on(std::initializer_list<Device::Type> devices) {
  op_.devices = devices;
  return *this;
}

OperatorBuilder& OperatorBuilder::refuses_non_finite() {
  op_.nonfinite = NonFinite::refuse;
  return *this;
}

OperatorBuilder& OperatorBuilder::requires_multiple(std::string a, std::string b) {
  op_.rules_.push_back([a, b](const Symbols& symbols, const options::Pairs&) -> std::string {
    const int64_t x = symbols.at(a), y = symbols.at(b);
    if (y > 0 && x % y == 0) return "";
    return a + " = " + std::to_string(x) + " is not a multiple of " + b + " = " + std::to_string(y);
  });
  return *this;
}

OperatorBuilder& OperatorBuilder::requires_power_of_two(std::string symbol) {
  op_.rules_.push_back([symbol](const Symbols& symbols, const options::Pairs&) -> std::string {
    const int64_t value = symbols.at(symbol);
    return value > 0 && std::has_single_bit(static_cast<uint64_t>(value))
               ? ""
               : symbol + " = " + std::to_string(value) + " is not a power of two";
  });
  return *this;
}

}  // namespace fovea
