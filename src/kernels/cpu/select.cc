// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <bit>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "fovea/core/memory.h"
#include "fovea/kernels/rows.h"
#include "kernels/cpu/parallel_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/select.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = HWY_FULL(float);

// Stores the chosen lanes one after another and returns their number; a whole vector is written. Compressing
// in the register first is many times faster than compressing to memory on some processors.
template <class D, class V, class M>
HWY_INLINE int64_t append(D d, V v, M chosen, hn::TFromD<D>* to) {
  hn::StoreU(hn::Compress(v, chosen), d, to);
  return static_cast<int64_t>(hn::CountTrue(d, chosen));
}

// The largest of every `stride` vectors, lane by lane: `count` values that do not share elements. Elements of
// a last ragged block are left out, which only loosens the bound made from the maxima.
int64_t block_maxima(const float* x, int64_t length, int64_t vectors, float* maxima) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto nothing = hn::Set(d, -std::numeric_limits<float>::infinity());
  const int64_t block = vectors * lanes;
  int64_t count = 0;
  for (int64_t i = 0; i + block <= length; i += block, count += lanes) {
    auto largest = nothing;
    for (int64_t j = 0; j < block; j += lanes) {
      const auto v = hn::LoadU(d, x + i + j);
      largest = hn::Max(largest, hn::IfThenElse(hn::IsNaN(v), nothing, v));
    }
    hn::StoreU(largest, d, maxima + count);
  }
  return count;
}

// Indices of the elements >= bound (NaN counts as -inf), ascending.
int64_t collect_at_least(const float* x, int64_t length, float bound, int32_t* indices) {
  const Floats d;
  const hn::Rebind<int32_t, Floats> di;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto nothing = hn::Set(d, -std::numeric_limits<float>::infinity()), limit = hn::Set(d, bound);
  int64_t count = 0, i = 0;
  for (; i + lanes <= length; i += lanes) {
    const auto v = hn::LoadU(d, x + i);
    const auto chosen = hn::Ge(hn::IfThenElse(hn::IsNaN(v), nothing, v), limit);
    if (hn::AllFalse(d, chosen)) continue;
    const auto at = hn::Iota(di, static_cast<int32_t>(i));
    count += append(di, at, hn::RebindMask(di, chosen), indices + count);
  }
  for (; i < length; ++i)
    if (x[i] >= bound || bound == -std::numeric_limits<float>::infinity())
      indices[count++] = static_cast<int32_t>(i);
  return count;
}

// Moves the elements above `pivot` to `larger` and those below it to the front of x; the rest equal it.
// Returns how many are below. No store passes what has been read, so `larger` needs `length` elements.
int64_t partition(float* x, int64_t length, float pivot, float* larger, int64_t* larger_count) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto border = hn::Set(d, pivot);
  int64_t above = 0, below = 0, i = 0;
  for (; i + lanes <= length; i += lanes) {
    const auto v = hn::LoadU(d, x + i);
    above += append(d, v, hn::Gt(v, border), larger + above);
    below += append(d, v, hn::Lt(v, border), x + below);
  }
  for (; i < length; ++i) {
    const float v = x[i];
    if (v > pivot) larger[above++] = v;
    if (v < pivot) x[below++] = v;
  }
  *larger_count = above;
  return below;
}

int64_t vector_lanes() { return static_cast<int64_t>(hn::Lanes(Floats())); }

}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
namespace {

HWY_EXPORT(block_maxima);
HWY_EXPORT(collect_at_least);
HWY_EXPORT(partition);
HWY_EXPORT(vector_lanes);

Shape with_last(const Tensor& x, int64_t count) {
  Shape shape = x.shape();
  shape[x.rank() - 1] = count;
  return shape;
}

void check_length(int64_t length) {
  require(length <= std::numeric_limits<int32_t>::max(), "rows of ", length, " elements have no i32 indices");
}

float without_nan(float x) { return x == x ? x : -std::numeric_limits<float>::infinity(); }

float median(float a, float b, float c) { return std::max(std::min(a, b), std::min(std::max(a, b), c)); }

struct Selection {
  memory::Buffer<float> values, spare;
  memory::Buffer<int32_t> candidates;

  // At least `count` elements reach the count-th largest of more than `count` disjoint block maxima, and few
  // others do; the exact choice is made among those.
  void top(const float* x, int64_t length, int64_t count, int32_t* out) {
    values.reserve(length);
    candidates.reserve(length);
    // About four maxima for each element wanted, at least a vector of them.
    const int64_t most = std::max<int64_t>(1, length / HWY_DYNAMIC_DISPATCH(vector_lanes)());
    const int64_t vectors = std::clamp<int64_t>(length / (4 * count), 1, most);
    const int64_t maxima = HWY_DYNAMIC_DISPATCH(block_maxima)(x, length, vectors, values.data());
    const float bound = maxima > count ? nth_largest(maxima, count) : -std::numeric_limits<float>::infinity();
    const int64_t found = HWY_DYNAMIC_DISPATCH(collect_at_least)(x, length, bound, candidates.data());
    for (int64_t i = 0; i < found; ++i) values[i] = without_nan(x[candidates[i]]);
    const float threshold = nth_largest(found, count);
    int64_t equal = count;
    for (int64_t i = 0; i < found; ++i) equal -= without_nan(x[candidates[i]]) > threshold;
    for (int64_t i = 0; i < found; ++i) {
      const float value = without_nan(x[candidates[i]]);
      if (value > threshold || (value == threshold && equal-- > 0)) *out++ = candidates[i];
    }
  }

 private:
  // Quickselect; a run of unlucky pivots leaves the rest to the standard library, which bounds the worst
  // case.
  float nth_largest(int64_t size, int64_t count) {
    constexpr int64_t kSmall = 64;
    constexpr int kRounds = 40;
    spare.reserve(size);
    float *from = values.data(), *larger = spare.data();
    for (int round = 0; size > kSmall && round < kRounds; ++round) {
      const float pivot = median(from[size / 4], from[size / 2], from[3 * size / 4]);
      int64_t above = 0;
      const int64_t below = HWY_DYNAMIC_DISPATCH(partition)(from, size, pivot, larger, &above);
      if (count <= above) {
        std::swap(from, larger);
        size = above;
      } else if (count <= size - below) {
        return pivot;
      } else {
        count -= size - below;
        size = below;
      }
    }
    std::nth_element(from, from + count - 1, from + size, std::greater<>());
    return from[count - 1];
  }
};

// Unsigned keys in the order of the floats; both zeros are equal and NaN comes last.
uint32_t key_of(float x) {
  if (x != x) return 0xFFFFFFFFu;
  const auto bits = std::bit_cast<uint32_t>(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Radix sort by 11 bits at a time, least significant first, which keeps equal keys in index order.
struct RadixSort {
  memory::Buffer<uint64_t> first, second;  // key << 32 | index

  void sort(const float* x, int64_t length, int32_t* out) {
    constexpr int kBits = 11, kPasses = 3;
    constexpr size_t kBuckets = size_t{1} << kBits;
    first.reserve(length);
    second.reserve(length);
    std::array<std::vector<int64_t>, kPasses> starts;
    for (auto& s : starts) s.assign(kBuckets, 0);
    const auto digit = [](uint64_t item, int pass) { return (item >> (32 + pass * kBits)) & (kBuckets - 1); };
    for (int64_t i = 0; i < length; ++i) {
      first[i] = uint64_t{key_of(x[i])} << 32 | static_cast<uint64_t>(i);
      for (int pass = 0; pass < kPasses; ++pass) ++starts[static_cast<size_t>(pass)][digit(first[i], pass)];
    }
    uint64_t *from = first.data(), *to = second.data();
    for (int pass = 0; pass < kPasses; ++pass) {
      auto& start = starts[static_cast<size_t>(pass)];
      int64_t sum = 0;
      for (auto& s : start) sum += std::exchange(s, sum);
      for (int64_t i = 0; i < length; ++i) to[start[digit(from[i], pass)]++] = from[i];
      std::swap(from, to);
    }
    for (int64_t i = 0; i < length; ++i) out[i] = static_cast<int32_t>(from[i] & 0xFFFFFFFFu);
  }
};

// Runs function(scratch, row values, row of the result) over all rows, one scratch for each worker.
template <typename Scratch, typename RowFunction>
Tensor index_rows(const Tensor& x, int64_t count, const RowFunction& function) {
  const cpu::RowsView rows(x);
  check_length(rows.length());
  const Tensor result = Tensor::empty(with_last(x, count), DType::i32);
  if (result.size() == 0) return result;
  auto* const out = result.data<int32_t>();
  std::vector<Scratch> scratch(static_cast<size_t>(threads()));
  cpu::parallel_rows(rows.count(), 4 * rows.length(), [&](int64_t begin, int64_t end, int worker) {
    for (int64_t row = begin; row < end; ++row)
      function(scratch[static_cast<size_t>(worker)], rows[row], out + row * count);
  });
  return result;
}

}  // namespace

Tensor top_k_rows(const Tensor& x, int64_t count) {
  require(count >= 0 && x.rank() >= 1, "top_k_rows: count = ", count, " of ", x.describe());
  const int64_t length = x.dim(-1), kept = std::min(count, length);
  return index_rows<Selection>(x, kept, [&](Selection& selection, const float* row, int32_t* out) {
    selection.top(row, length, kept, out);
  });
}

Tensor argsort_rows(const Tensor& x) {
  require(x.rank() >= 1, "argsort_rows: x is a scalar");
  const int64_t length = x.dim(-1);
  return index_rows<RadixSort>(
      x, length, [&](RadixSort& radix, const float* row, int32_t* out) { radix.sort(row, length, out); });
}

}  // namespace fovea::kernels
#endif  // HWY_ONCE
