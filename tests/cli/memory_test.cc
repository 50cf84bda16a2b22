// SPDX-License-Identifier: Apache-2.0
// Bounded memory at long lengths, seen from outside: the peak resident size of the whole process.
#include <gtest/gtest.h>

#include "cli/program.h"
#include "fovea/core/rng.h"
#include "fovea/io/safetensors.h"

namespace fovea::test {
namespace {

// Sanitizers keep shadow memory and freed blocks resident.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif
#else
constexpr bool kSanitized = false;
#endif

TEST(Memory, FlashAttentionOver64kTokensStaysBelow200Megabytes) {
  if (kSanitized) GTEST_SKIP() << "resident size says nothing under a sanitizer";
  const TemporaryFolder folder;
  constexpr int64_t kLength = 65536, kDim = 64;
  io::write_safetensors(folder / "in", {{"q", random_normal({1, 1, kLength, kDim}, 1)},
                                        {"k", random_normal({1, 1, kLength, kDim}, 2)},
                                        {"v", random_normal({1, 1, kLength, kDim}, 3)}});
  const Outcome outcome = run_well({"run", "flash-attention", folder / "in", "-o", folder / "out", "--set",
                                    "causal=true", "--stats", "--json"});
  EXPECT_LT(outcome.peak_resident_bytes, int64_t{200} << 20);
  EXPECT_LT(outcome.json()["scratch_bytes"], int64_t{64} << 20);
}

}  // namespace
}  // namespace fovea::test
