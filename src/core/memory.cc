// SPDX-License-Identifier: Apache-2.0
#include "fovea/core/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "fovea/core/error.h"

#if defined(__SANITIZE_ADDRESS__)
#define FOVEA_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#define FOVEA_ADDRESS_SANITIZER __has_feature(address_sanitizer)
#else
#define FOVEA_ADDRESS_SANITIZER 0
#endif

namespace fovea::memory {
namespace {
std::atomic<int64_t> current{0};
std::atomic<int64_t> peak{0};
std::atomic<bool> poison{false};

// Large blocks are laid out for huge pages: walking through long caches and weights then misses far fewer
// address translations.
constexpr size_t kHugePage = size_t{1} << 21;
constexpr size_t kHugeFrom = 2 * kHugePage;

// Large blocks that were freed, for calls that ask for the same size again and again: the system would clear
// every page of a fresh block, which takes longer than many a kernel. Sanitizers see nothing of a block that
// is kept, so nothing is kept from them.
class FreedBlocks {
 public:
#if FOVEA_ADDRESS_SANITIZER
  static constexpr size_t kMost = 0;
#else
  static constexpr size_t kMost = size_t{64} << 20;
#endif

  /// A block of exactly this size, or null.
  void* take(size_t size) {
    std::lock_guard lock(mutex_);
    const auto found = std::find_if(blocks_.rbegin(), blocks_.rend(),
                                    [&](const Block& block) { return block.size == size; });
    if (found == blocks_.rend()) return nullptr;
    void* data = found->data;
    blocks_.erase(std::next(found).base());
    held_ -= size;
    return data;
  }

  /// Keeps the block in place of older ones, or frees it.
  void put(void* data, size_t size) {
    if (size > kMost) return std::free(data);
    std::lock_guard lock(mutex_);
    blocks_.push_back({data, size});
    held_ += size;
    shrink(kMost);
  }

  void clear() {
    std::lock_guard lock(mutex_);
    shrink(0);
  }

 private:
  struct Block {
    void* data;
    size_t size;
  };

  void shrink(size_t most) {
    size_t gone = 0;
    for (; held_ > most; ++gone) {
      std::free(blocks_[gone].data);
      held_ -= blocks_[gone].size;
    }
    blocks_.erase(blocks_.begin(), blocks_.begin() + static_cast<std::ptrdiff_t>(gone));
  }

  std::mutex mutex_;
  std::vector<Block> blocks_;  // oldest first
  size_t held_ = 0;
};

// Never destroyed: tensors of static objects may be freed after it.
FreedBlocks& freed_blocks() {
  static auto* blocks = new FreedBlocks;
  return *blocks;
}

void* fresh_block(size_t alignment, size_t size) {
  void* block = std::aligned_alloc(alignment, size);
  if (block == nullptr) {
    freed_blocks().clear();
    block = std::aligned_alloc(alignment, size);
  }
#ifdef MADV_HUGEPAGE
  if (block != nullptr && alignment == kHugePage)
    madvise(block, size, MADV_HUGEPAGE);  // a wish; refusal costs nothing
#endif
  return block;
}

}  // namespace

std::shared_ptr<void> allocate(int64_t bytes) {
  FOVEA_ASSERT(bytes >= 0);
  const auto wanted = static_cast<size_t>(std::max<int64_t>(bytes, 1));
  const bool large = wanted >= kHugeFrom;
  const size_t alignment = large ? kHugePage : kAlignment;
  const size_t rounded = (wanted + alignment - 1) / alignment * alignment;
  void* block = large ? freed_blocks().take(rounded) : nullptr;
  if (block == nullptr) block = fresh_block(alignment, rounded);
  if (block == nullptr)
    throw Error("out of memory: " + std::to_string(bytes) + " bytes were refused", ErrorCode::unsupported);
  if (poison.load(std::memory_order_relaxed)) std::memset(block, 0xFF, rounded);
  const int64_t now = current.fetch_add(bytes) + bytes;
  int64_t seen = peak.load();
  while (now > seen && !peak.compare_exchange_weak(seen, now)) {
  }
  return {block, [bytes, rounded, large](void* p) {
            current.fetch_sub(bytes);
            large ? freed_blocks().put(p, rounded) : std::free(p);
          }};
}

int64_t current_bytes() { return current.load(); }
int64_t peak_bytes() { return peak.load(); }
void reset_peak() { peak.store(current.load()); }
void set_poison(bool on) { poison.store(on); }

}  // namespace fovea::memory
