// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ostream>
#include <vector>

#include "fovea/core/rng.h"
#include "fovea/core/thread_pool.h"
#include "fovea/kernels/attention.h"
#include "fovea/kernels/target.h"
#include "tests/support/reference.h"

/// Random attention problems and their double-precision answers, for the tests of every attention kernel.
namespace fovea::reference {

struct Sizes {
  int64_t batch = 1, heads_q = 1, heads_kv = 1, queries = 1, keys = 1, dim = 16, dim_v = 16;

  friend std::ostream& operator<<(std::ostream& out, const Sizes& s) {
    return out << "B" << s.batch << " Hq" << s.heads_q << " Hkv" << s.heads_kv << " Tq" << s.queries << " Tk"
               << s.keys << " D" << s.dim << " Dv" << s.dim_v;
  }
};

struct Inputs {
  Tensor q, k, v;
};

inline Inputs random_inputs(const Sizes& s, uint64_t seed = 1, DType dtype = DType::f32) {
  return {random_normal({s.batch, s.heads_q, s.queries, s.dim}, seed, 0).to(dtype),
          random_normal({s.batch, s.heads_kv, s.keys, s.dim}, seed, 1).to(dtype),
          random_normal({s.batch, s.heads_kv, s.keys, s.dim_v}, seed, 2).to(dtype)};
}

/// The element of a tensor that broadcasts over batch and head.
template <typename T>
double broadcast_at(const Tensor& t, int64_t b, int64_t h, int64_t i, int64_t j) {
  return t.at<T>(t.dim(0) == 1 ? 0 : b, t.dim(1) == 1 ? 0 : h, i, j);
}

/// What `params` means, spelled out element by element.
inline Problem problem_of(const Inputs& in, const kernels::AttentionParams& params) {
  Problem problem{.q = in.q, .k = in.k, .v = in.v};
  problem.scale = static_cast<double>(params.scale);
  problem.softcap = static_cast<double>(params.softcap);
  const int64_t queries = in.q.dim(2), keys = in.k.dim(2);
  const auto length = [=](int64_t b) { return params.k_len ? params.k_len.at<int32_t>(b) : keys; };
  problem.visible = [=](int64_t b, int64_t h, int64_t i, int64_t j) {
    const int64_t p = i + length(b) - queries;
    const auto& w = params.visible;
    if (j >= length(b) || (w.window_right >= 0 && j > p + w.window_right)) return false;
    if (w.window_left >= 0 && j < p - w.window_left && j >= w.prefix) return false;
    return !params.mask || broadcast_at<uint8_t>(params.mask, b, h, i, j) != 0;
  };
  problem.extra = [=](int64_t b, int64_t h, int64_t i, int64_t j) {
    double sum = params.bias ? broadcast_at<float>(params.bias, b, h, i, j) : 0.0;
    if (params.slopes)
      sum -= static_cast<double>(params.slopes.at<float>(h)) *
             static_cast<double>(std::abs(i + length(b) - queries - j));
    if (params.bias_q)
      for (int64_t r = 0; r < params.bias_q.dim(3); ++r)
        sum +=
            broadcast_at<float>(params.bias_q, b, h, i, r) * broadcast_at<float>(params.bias_k, b, h, j, r);
    return sum;
  };
  if (params.sink)
    for (int64_t h = 0; h < params.sink.dim(0); ++h) problem.sink.push_back(params.sink.at<float>(h));
  return problem;
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() &&
         std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.bytes())) == 0;
}

/// Runs `body` once with each SIMD target this machine has, and restores the best.
template <typename Body>
void for_each_simd_target(const Body& body) {
  for (const auto& name : kernels::simd_targets()) {
    kernels::force_simd_target(name);
    body(name);
  }
  kernels::force_simd_target("");
}

/// Restores the number of threads.
class WithThreads {
 public:
  explicit WithThreads(int threads) : before_(fovea::threads()) { set_threads(threads); }
  ~WithThreads() { set_threads(before_); }
  WithThreads(const WithThreads&) = delete;
  WithThreads& operator=(const WithThreads&) = delete;

 private:
  int before_;
};

}  // namespace fovea::reference
