// SPDX-License-Identifier: Apache-2.0
#include "fovea/model/sha256.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

namespace fovea::model {
namespace {

/// The first 32 bits of the fraction of x.
uint32_t fraction(long double x) { return static_cast<uint32_t>((x - std::floor(x)) * 4294967296.0L); }

/// The standard's constants: fractions of the square roots of the first 8 primes, and of the cube roots of
/// the first 64.
struct Constants {
  std::array<uint32_t, 8> start{};
  std::array<uint32_t, 64> round{};

  Constants() {
    size_t found = 0;
    for (int candidate = 2; found < round.size(); ++candidate) {
      bool prime = true;
      for (int divisor = 2; divisor * divisor <= candidate; ++divisor) prime &= candidate % divisor != 0;
      if (!prime) continue;
      if (found < start.size()) start[found] = fraction(std::sqrt(static_cast<long double>(candidate)));
      round[found++] = fraction(std::cbrt(static_cast<long double>(candidate)));
    }
  }
};

using Hash = std::array<uint32_t, 8>;

void absorb(const std::byte* block, const Constants& constants, Hash& hash) {
  std::array<uint32_t, 64> w;
  for (size_t t = 0; t < 16; ++t)
    w[t] = std::to_integer<uint32_t>(block[4 * t]) << 24 | std::to_integer<uint32_t>(block[4 * t + 1]) << 16 |
           std::to_integer<uint32_t>(block[4 * t + 2]) << 8 | std::to_integer<uint32_t>(block[4 * t + 3]);
  for (size_t t = 16; t < 64; ++t) {
    const uint32_t a = w[t - 15], b = w[t - 2];
    w[t] = w[t - 16] + (std::rotr(a, 7) ^ std::rotr(a, 18) ^ (a >> 3)) + w[t - 7] +
           (std::rotr(b, 17) ^ std::rotr(b, 19) ^ (b >> 10));
  }
  auto [a, b, c, d, e, f, g, h] = hash;
  for (size_t t = 0; t < 64; ++t) {
    const uint32_t first = h + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) +
                           ((e & f) ^ (~e & g)) + constants.round[t] + w[t];
    const uint32_t second =
        (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    h = g;
    g = f;
    f = e;
    e = d + first;
    d = c;
    c = b;
    b = a;
    a = first + second;
  }
  const Hash mixed{a, b, c, d, e, f, g, h};
  for (size_t i = 0; i < hash.size(); ++i) hash[i] += mixed[i];
}

}  // namespace

std::string sha256(std::span<const std::byte> bytes) {
  static const Constants constants;
  Hash hash = constants.start;
  const size_t whole = bytes.size() / 64 * 64;
  for (size_t begin = 0; begin < whole; begin += 64) absorb(bytes.data() + begin, constants, hash);

  // The rest, a one bit, zeros, and the length in bits in the last eight bytes.
  std::vector<std::byte> tail(bytes.begin() + static_cast<std::ptrdiff_t>(whole), bytes.end());
  tail.push_back(std::byte{0x80});
  while (tail.size() % 64 != 56) tail.push_back(std::byte{0});
  const uint64_t bits = static_cast<uint64_t>(bytes.size()) * 8;
  for (int shift = 56; shift >= 0; shift -= 8) tail.push_back(static_cast<std::byte>(bits >> shift));
  for (size_t begin = 0; begin < tail.size(); begin += 64) absorb(tail.data() + begin, constants, hash);

  std::string text;
  for (const uint32_t word : hash)
    for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[word >> shift & 15];
  return text;
}

}  // namespace fovea::model
