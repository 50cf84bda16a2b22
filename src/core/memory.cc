// SPDX-License-Identifier: Apache-2.0
#include "fovea/core/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "fovea/core/error.h"

namespace fovea::memory {
namespace {
std::atomic<int64_t> current{0};
std::atomic<int64_t> peak{0};
std::atomic<bool> poison{false};

// Large blocks are laid out for huge pages: walking through long caches and weights then misses far fewer
// address translations.
constexpr size_t kHugePage = size_t{1} << 21;
constexpr size_t kHugeFrom = 2 * kHugePage;
}  // namespace

std::shared_ptr<void> allocate(int64_t bytes) {
  FOVEA_ASSERT(bytes >= 0);
  const auto wanted = static_cast<size_t>(std::max<int64_t>(bytes, 1));
  const size_t alignment = wanted >= kHugeFrom ? kHugePage : kAlignment;
  const size_t rounded = (wanted + alignment - 1) / alignment * alignment;
  void* block = std::aligned_alloc(alignment, rounded);
#ifdef MADV_HUGEPAGE
  if (block != nullptr && alignment == kHugePage)
    madvise(block, rounded, MADV_HUGEPAGE);  // a wish; refusal costs nothing
#endif
  if (block == nullptr)
    throw Error("out of memory: " + std::to_string(bytes) + " bytes were refused", ErrorCode::unsupported);
  if (poison.load(std::memory_order_relaxed)) std::memset(block, 0xFF, rounded);
  const int64_t now = current.fetch_add(bytes) + bytes;
  int64_t seen = peak.load();
  while (now > seen && !peak.compare_exchange_weak(seen, now)) {
  }
  return {block, [bytes](void* p) {
            std::free(p);
            current.fetch_sub(bytes);
          }};
}

int64_t current_bytes() { return current.load(); }
int64_t peak_bytes() { return peak.load(); }
void reset_peak() { peak.store(current.load()); }
void set_poison(bool on) { poison.store(on); }

}  // namespace fovea::memory
