// SPDX-License-Identifier: Apache-2.0
// What every operator of the catalogue refuses, in one sentence that begins with its name and says what is
// wrong; and what no operator may crash on.
#include <functional>

#include "tests/conformance/any_operator.h"

namespace fovea::conformance {
namespace {

class EveryRefusal : public AnyOperator {
 protected:
  // `culprit` is the input or option that the message must mention.
  void expect_refused(const Tensors& in, const options::Pairs& pairs, const std::string& culprit) const {
    try {
      op().run(in, pairs);
      ADD_FAILURE() << op().name << " ran in spite of a bad " << culprit;
    } catch (const Error& error) {
      const std::string message = error.what();
      EXPECT_TRUE(message.starts_with(op().name + ": ")) << message;
      EXPECT_NE(message.find(culprit), std::string::npos) << message << " does not mention " << culprit;
      EXPECT_EQ(message.find('\n'), std::string::npos) << message;
      EXPECT_FALSE(op().supports(Problem::of(in, pairs)).yes) << culprit;
    }
  }

  void expect_option_refused(const Call& call, const options::Info& info, const std::string& value) const {
    SCOPED_TRACE(info.name + "=" + value);
    options::Pairs pairs = call.options();
    pairs.emplace_back(info.name, value);
    expect_refused(call.in, pairs, info.name);
  }

  // Runs, with outputs that keep to the spec, or throws an Error with a sentence.
  void expect_runs_or_refuses(const Call& call, bool finite = true) const {
    try {
      const Tensors out = call.outputs();
      if (finite) expect_conforming(call, out);
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()), "");
      EXPECT_NE(error.code(), ErrorCode::internal) << error.what();
    }
  }
};

TEST_P(EveryRefusal, OfMissingInputs) {
  const Call call = usual();
  for (const auto& spec : op().inputs) {
    if (spec.optional) continue;
    Tensors rest;
    for (const auto& [name, tensor] : call.in)
      if (name != spec.name) rest.set(name, tensor);
    expect_refused(rest, call.options(), spec.name);
  }
}

TEST_P(EveryRefusal, OfUnknownInputs) {
  Call call = usual();
  call.in.set("surplus", Tensor::zeros({1}));
  expect_refused(call.in, call.options(), "surplus");
}

TEST_P(EveryRefusal, OfWrongTypes) {
  const Call call = make_call(op(), kUsual, true);
  for (const auto& [name, tensor] : call.in) {
    const auto spec =
        std::find_if(op().inputs.begin(), op().inputs.end(),
                     [&, &wanted = name](const auto& candidate) { return candidate.name == wanted; });
    for (const DType dtype :
         {DType::f32, DType::f16, DType::bf16, DType::i8, DType::u8, DType::i32, DType::i64}) {
      if (std::find(spec->dtypes.begin(), spec->dtypes.end(), dtype) != spec->dtypes.end()) continue;
      Tensors in = call.in;
      in.set(name, Tensor::zeros(tensor.shape(), dtype));
      expect_refused(in, call.options(), name);
    }
  }
}

TEST_P(EveryRefusal, OfMixedTypes) {
  const Call call = usual();
  int64_t shared = 0;
  for (const auto& spec : op().inputs) shared += spec.shares_type && call.in.contains(spec.name);
  if (shared < 2) GTEST_SKIP() << op().name << ": no two inputs share a type";
  for (const auto& spec : op().inputs) {
    if (!spec.shares_type || !call.in.contains(spec.name)) continue;
    Tensors in = call.in;
    in.set(spec.name, call.in[spec.name].to(DType::bf16));
    expect_refused(in, call.options(), spec.name);
  }
}

TEST_P(EveryRefusal, OfWrongRanks) {
  const Call call = make_call(op(), kUsual, true);
  for (const auto& spec : op().inputs) {
    const Tensor tensor = call.in[spec.name];
    if (!tensor) continue;
    Tensors in = call.in;
    if (!spec.any_leading) {
      in.set(spec.name, tensor.unsqueeze(0));
      expect_refused(in, call.options(), spec.name);
    }
    in.set(spec.name, Tensor::zeros({}, tensor.dtype()));
    expect_refused(in, call.options(), spec.name);
  }
}

TEST_P(EveryRefusal, OfUnknownOptions) {
  const Call call = usual();
  options::Pairs pairs = call.options();
  pairs.emplace_back("surplus", "1");
  expect_refused(call.in, pairs, "surplus");
}

TEST_P(EveryRefusal, OfOptionsOutsideTheirRange) {
  if (op().options.empty()) GTEST_SKIP() << op().name << ": has no options";
  const Call call = usual();
  for (const auto& info : op().options) {
    const auto& limits = info.limits;
    const bool whole = info.type == "int" || info.type == "list of int";
    const auto text = [&](double value) {
      return whole ? options::print(static_cast<int64_t>(value)) : options::print(value);
    };
    if (limits.choices[0] != '\0') expect_option_refused(call, info, "-77");
    if (std::isfinite(limits.low))
      expect_option_refused(call, info, text(limits.low_open ? limits.low : limits.low - 1));
    if (std::isfinite(limits.high))
      expect_option_refused(call, info, text(limits.high_open ? limits.high : limits.high + 1));
    if (info.type != "str") expect_option_refused(call, info, "surplus");
  }
}

// Where the sizes of an axis contradict each other the operator says so; where they do not, it runs.
TEST_P(EveryRefusal, OrResultWhenAnAxisIsShorter) {
  const Call call = make_call(op(), kUsual, true);
  for (const auto& [name, tensor] : call.in)
    for (int axis = 0; axis < tensor.rank(); ++axis)
      for (const int64_t length : {tensor.dim(axis) - 1, int64_t{1}, int64_t{0}}) {
        SCOPED_TRACE(testing::Message() << name << " axis " << axis << " of length " << length);
        Call shorter = call;
        shorter.in.set(name, tensor.slice(axis, 0, length));
        const Support support = shorter.support();
        if (!support.yes) {
          EXPECT_TRUE(support.reason.starts_with(op().name + ": ")) << support.reason;
        }
        expect_runs_or_refuses(shorter);
      }
}

TEST_P(EveryRefusal, OrResultWhenOptionsAreExtreme) {
  const Call call = usual();
  for (const auto& info : op().options) {
    if (info.type != "int" || info.limits.choices[0] != '\0') continue;
    std::vector<int64_t> values = {
        std::isfinite(info.limits.low) ? static_cast<int64_t>(info.limits.low) : -1, 1, 17, 1000};
    for (const int64_t value : values) {
      SCOPED_TRACE(info.name + "=" + std::to_string(value));
      Call other = call;
      std::erase_if(other.plan.options, [&](const auto& pair) { return pair.first == info.name; });
      other.plan.options.emplace_back(info.name, std::to_string(value));
      if (other.support().yes) expect_runs_or_refuses(other);
    }
  }
}

TEST_P(EveryRefusal, OrResultWhenIndicesAreOutOfRange) {
  const Call call = make_call(op(), kUsual, true);
  bool has_indices = false;
  for (const auto& [name, tensor] : call.in) {
    if (tensor.dtype() != DType::i32) continue;
    has_indices = true;
    for (const int32_t value :
         {-1, 0, 1, 1000, std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::min()}) {
      SCOPED_TRACE(name + " all " + std::to_string(value));
      Call other = call;
      const Tensor wrong = Tensor::empty(tensor.shape(), DType::i32);
      std::fill_n(wrong.data<int32_t>(), wrong.size(), value);
      other.in.set(name, wrong);
      expect_runs_or_refuses(other);
    }
  }
  if (!has_indices) GTEST_SKIP() << op().name << ": takes no indices";
}

TEST_P(EveryRefusal, OrResultWhenInputsAreNotFinite) {
  const Call call = make_call(op(), kUsual, true);
  for (const auto& [name, tensor] : call.in) {
    if (!is_float(tensor.dtype())) continue;
    for (const float value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                              -std::numeric_limits<float>::infinity()}) {
      SCOPED_TRACE(testing::Message() << name << " has " << value);
      Call other = call;
      const Tensor wrong = tensor.clone();
      wrong.data<float>()[wrong.size() / 2] = value;
      other.in.set(name, wrong);
      if (op().nonfinite == NonFinite::propagate) {
        expect_runs_or_refuses(other, false);
        continue;
      }
      try {
        other.outputs();
        ADD_FAILURE() << op().name << " took it";
      } catch (const Error& error) {
        EXPECT_TRUE(std::string(error.what()).starts_with(op().name + ": " + name)) << error.what();
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Catalogue, EveryRefusal, testing::ValuesIn(all_operators()), test_name);

}  // namespace
}  // namespace fovea::conformance
