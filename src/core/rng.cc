// SPDX-License-Identifier: Apache-2.0
#include "fovea/core/rng.h"

#include <cmath>
#include <numbers>

namespace fovea {
namespace {

float unit(uint32_t word) { return static_cast<float>(word >> 8) * 0x1p-24f; }

}  // namespace

std::array<uint32_t, 4> Rng::block(uint64_t index) const {
  std::array<uint32_t, 4> c = {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                               static_cast<uint32_t>(stream_), static_cast<uint32_t>(stream_ >> 32)};
  auto key0 = static_cast<uint32_t>(seed_), key1 = static_cast<uint32_t>(seed_ >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c[0], b = uint64_t{0xCD9E8D57u} * c[2];
    c = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ key0, static_cast<uint32_t>(b),
         static_cast<uint32_t>(a >> 32) ^ c[3] ^ key1, static_cast<uint32_t>(a)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

float Rng::uniform(uint64_t i) const { return unit(block(i / 4)[i % 4]); }

float Rng::normal(uint64_t i) const {
  const auto words = block(i / 4);
  const size_t pair = i % 4 / 2 * 2;
  const double radius = std::sqrt(-2.0 * std::log(1.0 - static_cast<double>(unit(words[pair]))));
  const double angle = 2.0 * std::numbers::pi * unit(words[pair + 1]);
  return static_cast<float>(radius * (i % 2 == 0 ? std::cos(angle) : std::sin(angle)));
}

int64_t Rng::next_below(int64_t bound) {
  require(bound >= 1 && bound <= (int64_t{1} << 32), "Rng::next_below: bound ", bound, " is outside 1..2^32");
  // High half of a 64 x 32 bit product: uniform up to 2^-32, which no caller can see.
  return static_cast<int64_t>((uint64_t{block(position_++)[0]} * static_cast<uint64_t>(bound)) >> 32);
}

Tensor random_normal(const Shape& shape, uint64_t seed, uint64_t stream) {
  const Rng rng(seed, stream);
  Tensor result = Tensor::empty(shape);
  for (int64_t i = 0; i < result.size(); ++i) result.data<float>()[i] = rng.normal(static_cast<uint64_t>(i));
  return result;
}

Tensor random_uniform(const Shape& shape, uint64_t seed, uint64_t stream) {
  const Rng rng(seed, stream);
  Tensor result = Tensor::empty(shape);
  for (int64_t i = 0; i < result.size(); ++i) result.data<float>()[i] = rng.uniform(static_cast<uint64_t>(i));
  return result;
}

}  // namespace fovea
