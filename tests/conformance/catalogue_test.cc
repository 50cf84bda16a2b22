// SPDX-License-Identifier: Apache-2.0
// What every operator of the catalogue keeps to: its output spec, and the same result whatever the strides,
// the memory it is given, the threads, the batch it is in, and, up to rounding, the instruction set and type.
#include "fovea/core/memory.h"
#include "fovea/core/thread_pool.h"
#include "fovea/kernels/target.h"
#include "tests/conformance/any_operator.h"
#include "tests/support/attention_problem.h"

namespace fovea::conformance {
namespace {

using reference::WithThreads;

class EveryOperator : public AnyOperator {};

// A copy inside a larger block of NaN bytes: rows apart and off alignment, the last axis contiguous.
Tensor sliced(const Tensor& tensor) {
  Shape padded = tensor.shape();
  for (int axis = 0; axis < padded.rank(); ++axis) padded[axis] += 3;
  Tensor view = Tensor::empty(padded, tensor.dtype());
  std::memset(view.raw(), 0xFF, static_cast<size_t>(view.bytes()));
  for (int axis = 0; axis < padded.rank(); ++axis) view = view.slice(axis, 1, 1 + tensor.shape()[axis]);
  view.copy_from(tensor);
  return view;
}

// A copy with every axis but the last stored in the opposite order ([B,H,T,D] lies as T, H, B, D).
Tensor transposed(const Tensor& tensor) {
  const int leading = tensor.rank() - 1;
  Shape stored = tensor.shape();
  for (int axis = 0; axis < leading; ++axis) stored[axis] = tensor.shape()[leading - 1 - axis];
  Tensor view = Tensor::empty(stored, tensor.dtype());
  for (int axis = 0; axis < leading / 2; ++axis) view = view.transpose(axis, leading - 1 - axis);
  view.copy_from(tensor);
  return view;
}

// Fresh memory is full of NaN while one of these lives.
struct Poisoned {
  Poisoned() { memory::set_poison(true); }
  ~Poisoned() { memory::set_poison(false); }
  Poisoned(const Poisoned&) = delete;
  Poisoned& operator=(const Poisoned&) = delete;
};

TEST_P(EveryOperator, TakesTheUsualShape) {
  const Support support = usual().support();
  EXPECT_TRUE(support.yes) << support.reason;
}

TEST_P(EveryOperator, KeepsToItsOutputSpec) {
  for (const auto& [name, call] : all_calls(op())) {
    SCOPED_TRACE(name);
    expect_conforming(call, call.outputs());
  }
}

TEST_P(EveryOperator, TakesOrRefusesEmptyAxes) {
  for (const auto& [batch, length_q, length_k] :
       {std::array<int64_t, 3>{0, 63, 65}, {2, 0, 65}, {2, 63, 0}, {2, 0, 0}, {0, 0, 0}}) {
    SCOPED_TRACE(testing::Message() << "B " << batch << " Tq " << length_q << " Tk " << length_k);
    BenchShape shape = kUsual;
    shape.batch = batch, shape.length_q = length_q, shape.length_k = length_k;
    for (const bool every_input : {false, true}) {
      const Call call = make_call(op(), shape, every_input);
      try {
        expect_conforming(call, call.outputs());
      } catch (const Error& error) {
        EXPECT_TRUE(std::string(error.what()).starts_with(op().name + ": ")) << error.what();
      }
    }
  }
}

TEST_P(EveryOperator, ReadsStridedInputs) {
  for (const auto& [name, call] : all_calls(op())) {
    SCOPED_TRACE(name);
    const Tensors want = call.outputs();
    for (const auto& relaid : {sliced, transposed}) {
      SCOPED_TRACE(relaid == sliced ? "slices" : "transposed");
      Call strided = call;
      for (const auto& [input, tensor] : call.in) strided.in.set(input, relaid(tensor));
      expect_same_bits(strided.outputs(), want);
    }
  }
}

TEST_P(EveryOperator, ReadsNoMemoryItDidNotWrite) {
  for (const auto& [name, call] : all_calls(op())) {
    SCOPED_TRACE(name);
    const Tensors want = call.outputs();
    const Poisoned fresh_memory;
    expect_same_bits(call.outputs(), want);
  }
}

TEST_P(EveryOperator, LeavesItsInputsAlone) {
  const Call call = usual();
  Tensors before;
  for (const auto& [name, tensor] : call.in) before.set(name, tensor.clone());
  call.outputs();
  expect_same_bits(call.in, before);
}

TEST_P(EveryOperator, RepeatsBitForBitOnAnyNumberOfThreads) {
  for (const auto& [name, call] : all_calls(op())) {
    SCOPED_TRACE(name);
    const WithThreads restore(1);
    const Tensors want = call.outputs();
    expect_same_bits(call.outputs(), want);
    for (const int threads : {2, 3}) {
      set_threads(threads);
      expect_same_bits(call.outputs(), want);
    }
  }
}

TEST_P(EveryOperator, AgreesAcrossSimdTargets) {
  for (const auto& [name, call] : all_calls(op())) {
    const Tensors want = call.outputs();
    reference::for_each_simd_target([&, &label = name, &problem = call](const std::string& target) {
      SCOPED_TRACE(label + " on " + target);
      expect_near(problem.outputs(), want, 1e-4);
    });
  }
}

// The axis of length B of a tensor, -1 when it has none.
int batch_axis(const TensorSpec& spec) {
  const auto found =
      std::find_if(spec.axes.begin(), spec.axes.end(), [](const auto& axis) { return axis == "B"; });
  return found == spec.axes.end() ? -1 : static_cast<int>(found - spec.axes.begin());
}

TEST_P(EveryOperator, TreatsEachOfABatchAlone) {
  const auto has_batch = [](const auto& spec) { return batch_axis(spec) >= 0; };
  if (std::none_of(op().outputs.begin(), op().outputs.end(), has_batch))
    GTEST_SKIP() << op().name << ": no output has an axis B";
  const Call call = usual();
  const Tensors together = call.outputs();
  for (int64_t b = 0; b < kUsual.batch; ++b) {
    SCOPED_TRACE(testing::Message() << "row " << b);
    Call alone = call;
    for (const auto& spec : op().inputs)
      if (const int axis = batch_axis(spec); axis >= 0 && call.in.contains(spec.name))
        alone.in.set(spec.name, call.in[spec.name].slice(axis, b, b + 1));
    const Tensors got = alone.outputs();
    for (const auto& spec : op().outputs)
      if (const int axis = batch_axis(spec); axis >= 0) {
        EXPECT_TRUE(same_bits(got[spec.name], together[spec.name].slice(axis, b, b + 1))) << spec.name;
      }
  }
}

TEST_P(EveryOperator, RoundsOnlyWhenInputsAreSixteenBits) {
  const auto shares = [](const auto& spec) { return spec.shares_type; };
  if (std::none_of(op().inputs.begin(), op().inputs.end(), shares))
    GTEST_SKIP() << op().name << ": takes f32 alone";
  for (const auto& [dtype, tolerance] : {std::pair{DType::f16, 4e-3}, {DType::bf16, 2e-2}}) {
    SCOPED_TRACE(name_of(dtype));
    BenchShape shape = kUsual;
    shape.dtype = dtype;
    const Call narrow = make_call(op(), shape);
    Call wide = narrow;
    for (const auto& spec : op().inputs)
      if (spec.shares_type && narrow.in.contains(spec.name))
        wide.in.set(spec.name, narrow.in[spec.name].to(DType::f32));
    const Tensors out = narrow.outputs();
    expect_conforming(narrow, out);
    Tensors widened;
    for (const auto& [name, tensor] : out)
      widened.set(name, is_float(tensor.dtype()) ? tensor.to(DType::f32) : tensor);
    expect_near(widened, wide.outputs(), tolerance);
  }
}

INSTANTIATE_TEST_SUITE_P(Catalogue, EveryOperator, testing::ValuesIn(all_operators()), test_name);

}  // namespace
}  // namespace fovea::conformance
