// SPDX-License-Identifier: Apache-2.0
#include "fovea/kernels/roofline.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "fovea/core/memory.h"
#include "fovea/core/thread_pool.h"
#include "kernels/cpu/dot_instructions.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/roofline.cc"
#include "hwy/foreach_target.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Twelve independent chains cover the latency of any current multiply-add unit.
constexpr int kChains = 12;

// Returns the number of operations done; `sink` keeps the compiler from dropping the work.
double MultiplyAdds(int64_t rounds, float* sink) {
  const hn::ScalableTag<float> d;
  auto a0 = hn::Set(d, 0.5f), a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0;
  auto a6 = a0, a7 = a0, a8 = a0, a9 = a0, a10 = a0, a11 = a0;
  const auto x = hn::Set(d, 0.999f + *sink * 0.0f), y = hn::Set(d, 0.001f);
  for (int64_t i = 0; i < rounds; ++i) {
    a0 = hn::MulAdd(a0, x, y);
    a1 = hn::MulAdd(a1, x, y);
    a2 = hn::MulAdd(a2, x, y);
    a3 = hn::MulAdd(a3, x, y);
    a4 = hn::MulAdd(a4, x, y);
    a5 = hn::MulAdd(a5, x, y);
    a6 = hn::MulAdd(a6, x, y);
    a7 = hn::MulAdd(a7, x, y);
    a8 = hn::MulAdd(a8, x, y);
    a9 = hn::MulAdd(a9, x, y);
    a10 = hn::MulAdd(a10, x, y);
    a11 = hn::MulAdd(a11, x, y);
  }
  const auto first = hn::Add(hn::Add(hn::Add(a0, a1), hn::Add(a2, a3)), hn::Add(a4, a5));
  const auto second = hn::Add(hn::Add(hn::Add(a6, a7), hn::Add(a8, a9)), hn::Add(a10, a11));
  *sink = hn::GetLane(hn::SumOfLanes(d, hn::Add(first, second)));
  return 2.0 * kChains * static_cast<double>(rounds) * static_cast<double>(hn::Lanes(d));
}

uint64_t ReadAll(const uint64_t* data, int64_t count) {
  const hn::ScalableTag<uint64_t> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto a = hn::Zero(d), b = a, c = a, e = a;
  int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    a = hn::Xor(a, hn::LoadU(d, data + i));
    b = hn::Xor(b, hn::LoadU(d, data + i + lanes));
    c = hn::Xor(c, hn::LoadU(d, data + i + 2 * lanes));
    e = hn::Xor(e, hn::LoadU(d, data + i + 3 * lanes));
  }
  return hn::GetLane(hn::SumOfLanes(d, hn::Xor(hn::Xor(a, b), hn::Xor(c, e))));
}

// Stores that bypass the cache: a copy then moves two bytes per byte, not three.
void CopyAll(const uint64_t* from, uint64_t* to, int64_t count) {
  const hn::ScalableTag<uint64_t> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i + lanes <= count; i += lanes) hn::Stream(hn::Load(d, from + i), d, to + i);
  hwy::FlushStream();
}

}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
namespace {

HWY_EXPORT(MultiplyAdds);
HWY_EXPORT(ReadAll);
HWY_EXPORT(CopyAll);

using Clock = std::chrono::steady_clock;
constexpr int kProbes = 5;

// Best rate of `work`, which returns what one pass over all workers amounts to, within `seconds`.
template <typename Work>
double best_rate(double seconds, Work work) {
  double best = 0;
  const auto begin = Clock::now();
  work();  // wakes the workers and faults pages in
  do {
    const auto start = Clock::now();
    const double amount = work();
    best = std::max(best, amount / std::chrono::duration<double>(Clock::now() - start).count());
  } while (std::chrono::duration<double>(Clock::now() - begin).count() < seconds);
  return best;
}

// Runs `probe(rounds, sink)` on every worker and adds up the operations.
template <typename Probe>
double on_every_worker(int64_t rounds, Probe probe) {
  const int workers = threads();
  std::vector<double> amounts(static_cast<size_t>(workers));
  parallel_for(workers, [&](int64_t task, int) {
    float sink = 0;
    amounts[static_cast<size_t>(task)] = probe(rounds, &sink) + static_cast<double>(sink) * 0.0;
  });
  double sum = 0;
  for (double amount : amounts) sum += amount;
  return sum;
}

}  // namespace

Ceilings measure_ceilings(double seconds, int64_t buffer_bytes) {
  const double share = seconds / kProbes;
  constexpr int64_t kRounds = 100000;
  Ceilings ceilings{.threads = threads()};
  ceilings.f32_flops =
      best_rate(share, [] { return on_every_worker(kRounds, HWY_DYNAMIC_DISPATCH(MultiplyAdds)); });
  if (has_bf16_dot())
    ceilings.bf16_flops = best_rate(share, [] { return on_every_worker(kRounds, bf16_dot_rounds); });
  if (has_int8_dot())
    ceilings.int8_ops = best_rate(share, [] { return on_every_worker(kRounds, int8_dot_rounds); });

  const int64_t workers = threads();
  // Parts are a multiple of the widest vector, so that every part starts aligned.
  const int64_t part = buffer_bytes / 2 / workers / 1024 * 1024 / static_cast<int64_t>(sizeof(uint64_t));
  const memory::Buffer<uint64_t> from(part * workers), to(part * workers);
  std::vector<uint64_t> sinks(static_cast<size_t>(workers));
  parallel_for(workers, [&](int64_t w, int) {
    std::fill_n(from.data() + w * part, part, static_cast<uint64_t>(w));
    std::fill_n(to.data() + w * part, part, uint64_t{0});
  });
  const auto bytes = static_cast<double>(part * workers * static_cast<int64_t>(sizeof(uint64_t)));
  ceilings.read_bytes = best_rate(share, [&] {
    parallel_for(workers, [&](int64_t w, int) {
      sinks[static_cast<size_t>(w)] = HWY_DYNAMIC_DISPATCH(ReadAll)(from.data() + w * part, part) +
                                      HWY_DYNAMIC_DISPATCH(ReadAll)(to.data() + w * part, part);
    });
    return 2 * bytes;
  });
  ceilings.copy_bytes = best_rate(share, [&] {
    parallel_for(workers, [&](int64_t w, int) {
      HWY_DYNAMIC_DISPATCH(CopyAll)(from.data() + w * part, to.data() + w * part, part);
    });
    return 2 * bytes;
  });
  return ceilings;
}

}  // namespace fovea::kernels
#endif  // HWY_ONCE
