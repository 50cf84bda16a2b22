// SPDX-License-Identifier: Apache-2.0
#include "fovea/core/memory.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

namespace fovea::memory {
namespace {

constexpr int64_t kMegabyte = int64_t{1} << 20;

TEST(Memory, CountsWhatIsHeldWhateverIsKeptForLater) {
  const int64_t before = current_bytes();
  reset_peak();
  {
    const auto block = allocate(8 * kMegabyte + 1);
    EXPECT_EQ(current_bytes(), before + 8 * kMegabyte + 1);
  }
  EXPECT_EQ(current_bytes(), before);
  const auto again = allocate(8 * kMegabyte + 1);
  EXPECT_EQ(peak_bytes(), before + 8 * kMegabyte + 1);
}

TEST(Memory, LargeBlocksAreWritableAgainAfterOthersWereFreed) {
  for (int round = 0; round < 3; ++round) {
    std::vector<std::shared_ptr<void>> blocks;
    for (int64_t megabytes : {4, 5, 6, 70, 6, 40}) {
      blocks.push_back(allocate(megabytes * kMegabyte));
      std::memset(blocks.back().get(), round + 1, static_cast<size_t>(megabytes * kMegabyte));
      EXPECT_EQ(reinterpret_cast<uintptr_t>(blocks.back().get()) % kAlignment, 0u);
    }
    // Blocks in use are never handed out twice.
    for (const auto& block : blocks) EXPECT_EQ(*static_cast<char*>(block.get()), round + 1);
  }
}

TEST(Memory, PoisonFillsBlocksThatAreUsedAgain) {
  { std::memset(allocate(5 * kMegabyte).get(), 0, 5 * kMegabyte); }
  set_poison(true);
  const auto block = allocate(5 * kMegabyte);
  set_poison(false);
  const auto* bytes = static_cast<const unsigned char*>(block.get());
  EXPECT_EQ(bytes[0], 0xFF);
  EXPECT_EQ(bytes[5 * kMegabyte - 1], 0xFF);
}

}  // namespace
}  // namespace fovea::memory
