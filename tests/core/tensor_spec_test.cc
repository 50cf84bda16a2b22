// SPDX-License-Identifier: Apache-2.0
#include "fovea/core/tensor_spec.h"

#include <gtest/gtest.h>

namespace fovea {
namespace {

TEST(ShapeExpression, EvaluatesArithmetic) {
  const Symbols symbols = {{"T", 10}, {"block", 4}, {"n", 3}};
  EXPECT_EQ(evaluate("n+1", symbols), 4);
  EXPECT_EQ(evaluate("2*n*T-1", symbols), 59);
  EXPECT_EQ(evaluate("T/block", symbols), 2);
  EXPECT_EQ(evaluate("ceil(T/block)", symbols), 3);
  EXPECT_EQ(evaluate("ceil(8/block)", symbols), 2);
  EXPECT_EQ(evaluate("min(T,max(n,block))", symbols), 4);
  EXPECT_EQ(evaluate("ceil(T*n/8)", symbols), 4);
  EXPECT_EQ(evaluate("unknown*2", symbols), std::nullopt);
  EXPECT_EQ(evaluate("T/0", symbols), std::nullopt);
  EXPECT_THROW(evaluate("T+", symbols), Error);
  EXPECT_THROW(evaluate("(T", symbols), Error);
}

TEST(TensorSpec, ParsesAllItsParts) {
  const auto bias = TensorSpec::parse("bias? [1|B,1|Hq,Tq,Tk] f32|bf16");
  EXPECT_EQ(bias.name, "bias");
  EXPECT_TRUE(bias.optional);
  EXPECT_EQ(bias.axes.size(), 4u);
  EXPECT_EQ(bias.dtype_text(), "f32|bf16");
  const auto x = TensorSpec::parse("x [...,D]");
  EXPECT_TRUE(x.any_leading);
  EXPECT_EQ(x.shape_text(), "[...,D]");
  EXPECT_TRUE(TensorSpec::parse("q [B,D] float").shares_type);
  EXPECT_EQ(TensorSpec::parse("blocks [B,ceil(Tq/min(a,b))] u8").axes.size(), 2u);
}

class Matching : public testing::Test {
 protected:
  std::string match(const char* spec, const Shape& shape, DType dtype = DType::f32) {
    return TensorSpec::parse(spec).match(shape, dtype, symbols_, bound_by_);
  }
  Symbols symbols_;
  std::map<std::string, std::string> bound_by_;
};

TEST_F(Matching, BindsSymbolsAndHoldsLaterTensorsToThem) {
  EXPECT_EQ(match("q [B,Hq,T,D]", {2, 4, 5, 8}), "");
  EXPECT_EQ(match("k [B,Hkv,T,D]", {2, 2, 5, 8}), "");
  EXPECT_EQ(match("v [B,Hkv,T,D]", {2, 2, 5, 9}),
            "v has shape [2,2,5,9]: axis 3 (D) is 9, expected 8 as in q");
  EXPECT_EQ(match("c [B+1]", {3}, DType::f32), "");
  EXPECT_EQ(match("c [B+1]", {4}), "c has shape [4]: axis 0 (B+1) is 4, expected 3");
}

TEST_F(Matching, ChecksRankTypeBroadcastAndEmptiness) {
  EXPECT_EQ(match("q [B,D]", {2}), "q has shape [2], expected [B,D]");
  EXPECT_EQ(match("q [B,D]", {2, 3}, DType::i32), "q is i32, expected f32");
  EXPECT_EQ(match("q [B,D]", {2, 0}), "q has shape [2,0]: axis 1 (D) may not be empty");
  EXPECT_EQ(match("y [N,T]", {3, 0}), "");
  EXPECT_EQ(match("m [1|N,T]", {1, 0}), "");
  EXPECT_NE(match("m [1|N,T]", {2, 0}), "");
  EXPECT_EQ(match("x [...,D]", {5, 6, 7}), "");
  EXPECT_EQ(symbols_.at("D"), 7);
}

}  // namespace
}  // namespace fovea
