// SPDX-License-Identifier: Apache-2.0
#include "cli/catalogue_json.h"

#include <cmath>

namespace fovea::cli {
namespace {

using nlohmann::ordered_json;

template <typename Value>
ordered_json parsed(const std::string& text) {
  Value value{};
  options::parse(text, "value", value);
  if constexpr (std::is_floating_point_v<Value>)
    if (!std::isfinite(value)) return text;
  return value;
}

// The text of an option as JSON of the option's type.
ordered_json typed_value(const std::string& type, const std::string& text) {
  if (type == "bool") return parsed<bool>(text);
  if (type == "int") return parsed<int64_t>(text);
  if (type == "float") return parsed<double>(text);
  if (type == "list of int") return parsed<std::vector<int64_t>>(text);
  if (type == "list of float") return parsed<std::vector<double>>(text);
  return text;
}

ordered_json tensors_json(const std::vector<TensorSpec>& specs) {
  ordered_json result = ordered_json::array();
  for (const auto& spec : specs) {
    ordered_json dtypes = ordered_json::array();
    for (DType dtype : spec.dtypes) dtypes.push_back(std::string(name_of(dtype)));
    result.push_back(
        {{"name", spec.name}, {"shape", spec.shape_text()}, {"dtypes", dtypes}, {"optional", spec.optional}});
  }
  return result;
}

}  // namespace

std::vector<std::string> form_names(const Operator& op) {
  std::vector<std::string> names;
  for (Form form : op.forms) names.emplace_back(name_of(form));
  return names;
}

std::vector<std::string> device_names(const Operator& op) {
  std::vector<std::string> names;
  for (auto type : op.devices) names.emplace_back(type == Device::Type::cpu ? "cpu" : "cuda");
  return names;
}

ordered_json summary_json(const Operator& op) {
  const Paper* paper = find_paper(op.paper);
  return {{"name", op.name},
          {"room", name_of(op.room)},
          {"paper", op.paper},
          {"title", paper == nullptr ? "" : paper->title},
          {"year", paper == nullptr ? 0 : paper->year},
          {"arxiv", paper == nullptr ? "" : paper->arxiv},
          {"summary", op.summary},
          {"forms", form_names(op)},
          {"devices", device_names(op)}};
}

ordered_json operator_json(const Operator& op) {
  ordered_json result = summary_json(op);
  result["nonfinite"] = op.nonfinite == NonFinite::refuse ? "refuse" : "propagate";
  result["inputs"] = tensors_json(op.inputs);
  result["outputs"] = tensors_json(op.outputs);
  result["options"] = ordered_json::array();
  for (const auto& info : op.options)
    result["options"].push_back({{"name", info.name},
                                 {"alias", info.alias},
                                 {"type", info.type},
                                 {"default", typed_value(info.type, info.default_value)},
                                 {"range", info.range},
                                 {"help", info.help}});
  return result;
}

ordered_json options_json(const std::vector<options::Info>& infos, const options::Pairs& pairs) {
  ordered_json result = ordered_json::object();
  for (const auto& [key, text] : pairs)
    for (const auto& info : infos)
      if (key == info.name || key == info.alias) result[info.name] = typed_value(info.type, text);
  return result;
}

}  // namespace fovea::cli
