// SPDX-License-Identifier: Apache-2.0
#include "fovea/core/tensor.h"

#include <dlpack/dlpack.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "fovea/core/memory.h"
#include "fovea/core/rng.h"

namespace fovea {
namespace {

Tensor counting(const Shape& shape) {
  Tensor t = Tensor::empty(shape);
  for (int64_t i = 0; i < t.size(); ++i) t.data<float>()[i] = static_cast<float>(i);
  return t;
}

TEST(Tensor, IsAlignedAndContiguousWhenFresh) {
  for (DType dtype : {DType::f32, DType::bf16, DType::u8, DType::i64}) {
    const Tensor t = Tensor::empty({3, 5}, dtype);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(t.raw()) % memory::kAlignment, 0u);
    EXPECT_TRUE(t.is_contiguous());
    EXPECT_EQ(t.bytes(), 15 * size_of(dtype));
  }
}

TEST(Tensor, CopiesShareElementsAndClonesDoNot) {
  const Tensor a = counting({2, 3});
  const Tensor b = a, c = a.clone();
  a.at<float>(1, 2) = 50;
  EXPECT_EQ(b.at<float>(1, 2), 50);
  EXPECT_EQ(c.at<float>(1, 2), 5);
}

TEST(Tensor, ViewsAddressTheElementsTheyName) {
  const Tensor a = counting({2, 6, 4});
  EXPECT_EQ(a.slice(1, 1, 6, 2).at<float>(1, 2, 3), a.at<float>(1, 5, 3));
  EXPECT_EQ(a.select(1, 4).at<float>(1, 2), a.at<float>(1, 4, 2));
  EXPECT_EQ(a.transpose(0, 2).at<float>(3, 5, 1), a.at<float>(1, 5, 3));
  EXPECT_EQ(a.unsqueeze(1).at<float>(1, 0, 5, 3), a.at<float>(1, 5, 3));
  EXPECT_EQ(a.slice(1, 2, 3).expand({2, 9, 4}).at<float>(1, 8, 3), a.at<float>(1, 2, 3));
  EXPECT_EQ(a.dim(-1), 4);
}

TEST(Tensor, ReshapeKeepsOrderOnContiguousAndStridedViews) {
  const Tensor a = counting({4, 6});
  EXPECT_EQ(a.reshape({2, 2, 3, 2}).at<float>(1, 0, 2, 1), a.at<float>(2, 5));
  const Tensor rows = counting({4, 2, 6}).slice(1, 0, 1).reshape({4, 6});  // a gap between rows
  EXPECT_EQ(rows.at<float>(3, 5), 41);
  EXPECT_EQ(rows.reshape({2, 2, 6}).at<float>(1, 1, 5), 41);
  EXPECT_EQ(rows.reshape({4, 3, 2}).at<float>(3, 2, 1), 41);
  EXPECT_THROW(rows.reshape({24}), Error);
  EXPECT_THROW(a.transpose(0, 1).reshape({24}), Error);
  EXPECT_THROW(a.reshape({5, 5}), Error);
}

TEST(Tensor, ContiguousGathersAnyStrides) {
  const Tensor a = counting({3, 4, 5}).transpose(0, 2).contiguous();
  EXPECT_TRUE(a.is_contiguous());
  EXPECT_EQ(a.at<float>(4, 3, 2), 2 * 20 + 3 * 5 + 4);
}

TEST(Tensor, EmptyAndScalarShapesWork) {
  EXPECT_EQ(Tensor::empty({0, 3}).size(), 0);
  EXPECT_EQ(Tensor::empty({0, 3}).clone().shape(), (Shape{0, 3}));
  EXPECT_EQ(Tensor::empty({}).size(), 1);
}

TEST(Tensor, RefusesBadAccess) {
  const Tensor a = counting({2, 3});
  EXPECT_THROW(a.data<Half>(), Error);
  EXPECT_THROW(a.at<float>(2, 0), Error);
  EXPECT_THROW(a.slice(1, 2, 4), Error);
  EXPECT_THROW(a.dim(2), Error);
  EXPECT_THROW(Tensor::empty({-1}), Error);
  EXPECT_THROW(Tensor::empty({int64_t{1} << 40, int64_t{1} << 40}), Error);
  EXPECT_THROW(Shape({1, 1, 1, 1, 1, 1, 1, 1, 1}), Error);
  EXPECT_THROW(Tensor::empty({2}, DType::f32, Device::cuda()), Error);
}

TEST(HalfTypes, EveryHalfSurvivesARoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const Half half{static_cast<uint16_t>(bits)};
    const BFloat16 brain{static_cast<uint16_t>(bits)};
    ASSERT_EQ(std::isnan(to_float(half)), std::isnan(to_float(to_half(to_float(half))))) << bits;
    if (!std::isnan(to_float(half))) {
      ASSERT_EQ(to_half(to_float(half)).bits, bits);
    }
    if (!std::isnan(to_float(brain))) {
      ASSERT_EQ(to_bfloat16(to_float(brain)).bits, bits);
    }
  }
}

TEST(HalfTypes, RoundToNearestEvenAndOverflowToInfinity) {
  EXPECT_EQ(to_half(1.0f + 0x1p-11f).bits, to_half(1.0f).bits);  // a tie goes to even
  EXPECT_EQ(to_half(1.0f + 3 * 0x1p-11f).bits, to_half(1.0f).bits + 2);
  EXPECT_EQ(to_half(65519.9f).bits, to_half(65504.0f).bits);
  EXPECT_TRUE(std::isinf(to_float(to_half(65520.0f))));
  EXPECT_EQ(to_half(0x1p-25f).bits, 0);  // a tie below the smallest subnormal
  EXPECT_EQ(to_half(0x1.8p-25f).bits, 1);
  EXPECT_EQ(to_bfloat16(1.0f + 0x1p-8f).bits, to_bfloat16(1.0f).bits);
  EXPECT_TRUE(std::isnan(to_float(to_bfloat16(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(Tensor, ConvertsBetweenFloatTypes) {
  const Tensor a = random_normal({3, 7}, 1);
  for (DType dtype : {DType::f16, DType::bf16}) {
    const Tensor back = a.to(dtype).to(DType::f32);
    for (int64_t i = 0; i < a.size(); ++i)
      EXPECT_NEAR(back.data<float>()[i], a.data<float>()[i], std::abs(a.data<float>()[i]) * 0x1p-8f);
  }
  EXPECT_THROW(Tensor::empty({1}, DType::i32).to(DType::f32), Error);
}

TEST(DLPack, RoundTripSharesElementsAndFreesOnce) {
  const int64_t before = memory::current_bytes();
  {
    Tensor a = counting({4, 3}).transpose(0, 1);
    DLManagedTensor* managed = to_dlpack(a);
    a.at<float>(2, 1) = 99;
    a = Tensor();
    const Tensor b = from_dlpack(managed);
    EXPECT_EQ(b.shape(), (Shape{3, 4}));
    EXPECT_EQ(b.at<float>(2, 1), 99);
  }
  EXPECT_EQ(memory::current_bytes(), before);
}

TEST(DLPack, RefusesForeignTypesAndStillReleasesThem) {
  DLManagedTensor* managed = to_dlpack(counting({2}));
  managed->dl_tensor.dtype.bits = 64;
  const int64_t before = memory::current_bytes();
  EXPECT_THROW(from_dlpack(managed), Error);
  EXPECT_LT(memory::current_bytes(), before);
}

TEST(Memory, PeakCountsWhatWasHeldAtOnce) {
  memory::reset_peak();
  const int64_t before = memory::current_bytes();
  { const Tensor a = Tensor::empty({1000}), b = Tensor::empty({1000}); }
  { const Tensor c = Tensor::empty({1500}); }
  EXPECT_EQ(memory::current_bytes(), before);
  EXPECT_EQ(memory::peak_bytes() - before, 8000);
}

}  // namespace
}  // namespace fovea
