// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/dot_instructions.h"

#include "kernels/cpu/tile_shape.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace fovea::kernels {

#if defined(__x86_64__)

namespace {

// Independent sums cover the latency of the dot product. They start apart, so that the compiler cannot merge
// them, and all end in the sink.
constexpr int kChains = 12;
constexpr int kLanes = 16;  // sums of a 512-bit register

double operations(int64_t rounds, int products_per_lane) {
  return 2.0 * kChains * kLanes * products_per_lane * static_cast<double>(rounds);
}

}  // namespace

bool has_bf16_dot() {
  return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bf16") != 0;
}
bool has_int8_dot() {
  return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512vnni") != 0;
}

bool has_bf16_tiles() {
#if defined(__linux__)
  static const bool usable = [] {
    constexpr unsigned kBF16 = 1u << 22, kTile = 1u << 24;  // of leaf 7's edx
    constexpr long kRequestState = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned a = 0, b = 0, c = 0, d = 0;
    return has_bf16_dot() && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kBF16) != 0 &&
           (d & kTile) != 0 && syscall(SYS_arch_prctl, kRequestState, kTileData) == 0;
  }();
  return usable;
#else
  return false;
#endif
}

namespace {

// Four accumulators of 16 x 16, as many as two operands each leave room for.
__attribute__((target("amx-tile,amx-bf16"))) double bf16_tile_rounds(int64_t rounds, float* sink) {
  const cpu::TileShape shape;
  alignas(64) float tile[256];
  for (float& x : tile) x = *sink;
  // The intrinsics do not tell the compiler what memory they touch.
  asm volatile("" ::"r"(&shape), "r"(tile) : "memory");
  _tile_loadconfig(&shape);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, tile, 64);
  _tile_loadd(5, tile, 64);
  _tile_loadd(6, tile, 64);
  _tile_loadd(7, tile, 64);
  for (int64_t i = 0; i < rounds; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, tile, 64);
  _tile_release();
  asm volatile("" ::"r"(tile) : "memory");
  *sink = tile[0];
  constexpr double kOperations = 2.0 * cpu::kTileRows * 16 * 2 * cpu::kTilePairs;
  return 4 * kOperations * static_cast<double>(rounds);
}

__attribute__((target("avx512f,avx512bw,avx512bf16"))) double bf16_vector_rounds(int64_t rounds,
                                                                                 float* sink) {
  const __m512 one = _mm512_set1_ps(1.0f + *sink);
  const auto x = _mm512_cvtne2ps_pbh(one, one);
  __m512 sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = _mm512_set1_ps(*sink + static_cast<float>(i));
  for (int64_t i = 0; i < rounds; ++i)
    for (auto& sum : sums) sum = _mm512_dpbf16_ps(sum, x, x);
  __m512 total = _mm512_setzero_ps();
  for (const auto& sum : sums) total = _mm512_add_ps(total, sum);
  alignas(64) float lanes[kLanes];
  _mm512_store_ps(lanes, total);
  *sink = lanes[0];
  return operations(rounds, 2);
}

}  // namespace

double bf16_dot_rounds(int64_t rounds, float* sink) {
  return has_bf16_tiles() ? bf16_tile_rounds(rounds, sink) : bf16_vector_rounds(rounds, sink);
}

__attribute__((target("avx512f,avx512bw,avx512vnni"))) double int8_dot_rounds(int64_t rounds, float* sink) {
  const __m512i x = _mm512_set1_epi32(0x01010101 + static_cast<int>(*sink));
  __m512i sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = _mm512_set1_epi32(static_cast<int>(*sink) + i);
  for (int64_t i = 0; i < rounds; ++i)
    for (auto& sum : sums) sum = _mm512_dpbusd_epi32(sum, x, x);
  __m512i total = _mm512_setzero_si512();
  for (const auto& sum : sums) total = _mm512_add_epi32(total, sum);
  alignas(64) int32_t lanes[kLanes];
  _mm512_store_si512(lanes, total);
  *sink = static_cast<float>(lanes[0]);
  return operations(rounds, 4);
}

#else

bool has_bf16_dot() { return false; }
bool has_int8_dot() { return false; }
bool has_bf16_tiles() { return false; }
double bf16_dot_rounds(int64_t, float*) { return 0; }
double int8_dot_rounds(int64_t, float*) { return 0; }

#endif

}  // namespace fovea::kernels
