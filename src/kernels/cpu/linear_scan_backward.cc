// SPDX-License-Identifier: Apache-2.0
// Gradients of the linear scan. A task owns one kv head: it runs the states forward, keeping one at each
// chunk, then meets the chunks backward with dS, the gradient of the state after them:
//   dU = K^ dS + sum of readers P^T dO        dK^ = U dS^T        dS <- Diag(prod a) dS + sum of readers X~^T
//   dO
// Readers are the query heads and, for the delta rule, x = -k with the gradient of E in the place of dO. For
// each,
//   dX~ = dO S^T      dP = dO U^T      P_ij = sum_c x_ic w_ij,c k_jc
// and dU turns into dV = dX and dbeta as in ScanChunk::write_backward. Every use of x_i carries the decay of
// all tokens up to i, every write of k_j lacks it, and the state after the chunk has that of all, so with G_i
// = sum_{m<=i} ln a_m
//   dG_i = sum of readers x_i dx_i - k_i dk_i      dG_last += rowsum(S dS)      d ln a_m = sum_{i>=m} dG_i
// where the pairs i = j, which no decay touches, are left out of dx and dk so that they need not cancel.
#include <vector>

#include "fovea/core/thread_pool.h"
#include "kernels/cpu/linear_scan.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear_scan_backward.cc"
#include "hwy/foreach_target.h"
#include "kernels/cpu/linear_scan_chunk-inl.h"

#ifndef FOVEA_KERNELS_CPU_LINEAR_SCAN_BACKWARD_ONCE
#define FOVEA_KERNELS_CPU_LINEAR_SCAN_BACKWARD_ONCE
namespace fovea::kernels {
namespace {

constexpr int64_t kBackwardChunk = 64;

}  // namespace
}  // namespace fovea::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

using cpu::LinearScanBackwardProblem;

class ScanBackwardTask {
 public:
  bool ready() const { return problem_ != nullptr; }
  void reserve(const LinearScanBackwardProblem& problem, int64_t chunk) {
    problem_ = &problem, a_ = &problem.args;
    width_v_ = round_up(std::max<int64_t>(a_->dim_v, 1), std::max<int64_t>(kLanes, 4));
    chunk_.reserve(*a_, chunk, width_v_);
    width_ = keys().width(), size_ = a_->dim * width_v_;
    states_.reserve(((a_->length + chunk - 1) / chunk + 1) * size_);
    d_state_.reserve(size_);
    for (auto* rows : {&queries_, &decayed_, &ends_, &dx_, &d_keys_, &d_ends_, &d_own_, &d_logs_})
      rows->reserve(chunk * width_);
    for (auto* rows : {&d_o_, &d_errors_, &d_writes_, &writes_t_}) rows->reserve(chunk * width_v_);
    for (auto* square : {&scores_, &d_scores_}) square->reserve(chunk * chunk);
    for (auto* turned : {&state_t_, &d_state_t_}) turned->reserve(width_v_ * width_);
    for (auto* row : {&d_total_, &sums_, &stage_}) row->reserve(kScanBlock * width_);
    own_.reserve(chunk);
    zeros_.reserve(width_v_);
    std::fill_n(zeros_.data(), width_v_, 0.0f);
    if (keys().channels())
      for (auto* copies : {&key_copies_, &d_key_copies_}) copies->reserve(copy_row(chunk) * width_);
  }

  void run(int64_t b, int64_t kv) {
    const LinearScanBackwardProblem& p = *problem_;
    const int64_t chunk = keys().chunk(), chunks = (a_->length + chunk - 1) / chunk;
    batch_ = b, head_ = kv;
    load_state(a_->state, states_.data());
    for (int64_t n = 0; n < chunks; ++n) {
      load(n);
      std::copy(state(n), state(n) + size_, state(n + 1));
      keys().decay_to_end(keys().keys());
      chunk_.advance(keys().keys(), state(n + 1));
    }
    load_state(p.d_final_state, d_state_.data());
    d_log_head_ = 0;
    for (int64_t n = chunks - 1; n >= 0; --n) meet(n);
    if (p.d_log_head) p.d_log_head[b * a_->heads_kv + kv] = d_log_head_;
    if (!p.d_state) return;
    for (int64_t c = 0; c < a_->dim; ++c)
      store_row(d_state_.data() + c * width_v_, a_->dim_v, 1.0f, p.d_state.at<float>(b, kv, c));
  }

 private:
  ScanKeys& keys() { return chunk_.keys(); }
  float* state(int64_t n) { return states_.data() + n * size_; }
  // The first row of the copy of all keys before token `r`, the first of a block.
  static int64_t copy_row(int64_t r) { return r * (r - kScanBlock) / (2 * kScanBlock); }

  void load_state(const View& from, float* to) {
    if (!from) return void(std::fill_n(to, size_, 0.0f));
    for (int64_t c = 0; c < a_->dim; ++c)
      load_row(from.at<float>(batch_, head_, c), a_->dim_v, 1.0f, to + c * width_v_, width_v_);
  }

  void load(int64_t n) {
    first_ = n * keys().chunk(), count_ = std::min(keys().chunk(), a_->length - first_);
    chunk_.load(batch_, head_, first_, count_, 0, a_->dim_v);
    chunk_.write(state(n));
  }

  void meet(int64_t n) {
    load(n);
    const int64_t rows = keys().rows(), chunk = keys().chunk();
    const bool decays = a_->decay != Decay::none;
    float* d_state = d_state_.data();
    std::copy(keys().keys(), keys().keys() + rows * width_, ends_.data());
    keys().decay_to_end(ends_.data());
    if (decays)
      for (int64_t c = 0; c < a_->dim; ++c)
        d_total_[c] = dot(state(n + 1) + c * width_v_, d_state + c * width_v_, width_v_);
    transpose_tile(d_state, a_->dim, width_v_, a_->dim_v, zeros_.data(), d_state_t_.data(), width_);
    transpose_tile(state(n), a_->dim, width_v_, a_->dim_v, zeros_.data(), state_t_.data(), width_);
    transpose_tile(chunk_.writes(), rows, width_v_, a_->dim_v, zeros_.data(), writes_t_.data(), chunk);
    multiply({ends_.data(), width_, 1, d_state, width_v_, d_errors_.data(), width_v_, rows, a_->dim, false},
             width_v_);
    multiply({chunk_.writes(), width_v_, 1, d_state_t_.data(), width_, d_ends_.data(), width_, rows,
              a_->dim_v, false},
             width_);
    for (int64_t c = 0; decays && c < a_->dim; ++c)
      multiply_row(d_state + c * width_v_, keys().total(c), width_v_);
    std::fill_n(d_own_.data(), rows * width_, 0.0f);
    std::fill_n(d_logs_.data(), rows * width_, 0.0f);
    begin_keys();
    for (int64_t h = head_ * a_->group(); h < (head_ + 1) * a_->group(); ++h) query_head(h);
    chunk_.write_backward(d_errors_.data(), d_writes_.data());
    store_values();
    if (a_->delta) {
      std::copy(keys().keys(), keys().keys() + rows * width_, queries_.data());
      multiply_row(queries_.data(), -1.0f, rows * width_);
      read(queries_.data(), d_writes_.data(), true);
    }
    end_keys();
    store_decays();
  }

  void query_head(int64_t h) {
    const int64_t rows = keys().rows(), chunk = keys().chunk();
    load_tokens(a_->q, batch_, h, first_, count_, 0, a_->dim, a_->scale, queries_.data(), width_);
    load_tokens(problem_->d_o, batch_, h, first_, count_, 0, a_->dim_v, 1.0f, d_o_.data(), width_v_);
    keys().score(queries_.data(), false, scores_.data());
    for (int64_t r = 0; r < rows; r += kScanBlock)
      multiply({scores_.data() + r * chunk + r, 1, chunk, d_o_.data() + r * width_v_, width_v_,
                d_errors_.data() + r * width_v_, width_v_, kScanBlock, rows - r, true},
               width_v_);
    read(queries_.data(), d_o_.data(), false);
    for (int64_t t = 0; t < count_; ++t)
      store_row(dx_.data() + t * width_, a_->dim, a_->scale, problem_->dq.at(batch_, h, first_ + t),
                problem_->dq.dtype);
  }

  // Gradients of one reader: dx_, and its share in those of keys, state and decays.
  void read(const float* x, const float* d_out, bool strict) {
    const int64_t rows = keys().rows(), chunk = keys().chunk();
    float *dx = dx_.data(), *dp = d_scores_.data();
    std::copy(x, x + rows * width_, decayed_.data());
    keys().decay_from_start(decayed_.data());
    multiply({decayed_.data(), 1, width_, d_out, width_v_, d_state_.data(), width_v_, a_->dim, rows, true},
             width_v_);
    multiply({d_out, width_v_, 1, state_t_.data(), width_, dx, width_, rows, a_->dim_v, false}, width_);
    keys().decay_from_start(dx);
    for (int64_t r = 0; r < rows; r += kScanBlock) {
      float* block = dp + r * chunk;
      multiply({d_out + r * width_v_, width_v_, 1, writes_t_.data(), chunk, block, chunk, kScanBlock,
                a_->dim_v, false},
               r + kScanBlock);
      for (int64_t i = 0; i < kScanBlock; ++i) own_[r + i] = block[i * chunk + r + i];
      if (!keys().channels()) keys().weigh_block(r, true, block);
    }
    if (keys().channels())
      pull_channels(x);
    else
      pull(x);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = i * width_;
      if (a_->decay != Decay::none) add_products(d_logs_.data() + at, x + at, dx + at, width_);
      if (strict) {
        add_multiple(d_own_.data() + at, -1.0f, dx + at, width_);
        continue;
      }
      add_multiple(dx + at, own_[i], keys().keys() + at, width_);
      add_multiple(d_own_.data() + at, own_[i], x + at, width_);
    }
  }

  // dX += (dP . w) K    dK += (dP . w)^T X
  void pull(const float* x) {
    const int64_t rows = keys().rows(), chunk = keys().chunk();
    const float* dp = d_scores_.data();
    for (int64_t r = 0; r < rows; r += kScanBlock) {
      multiply({dp + r * chunk, chunk, 1, keys().keys(), width_, dx_.data() + r * width_, width_, kScanBlock,
                r + kScanBlock, true},
               width_);
      multiply({dp + r * chunk + r, 1, chunk, x + r * width_, width_, d_keys_.data() + r * width_, width_,
                kScanBlock, rows - r, true},
               width_);
    }
  }

  // The same where w depends on the channel: two factors that meet at the start of the block of i, and pairs
  // inside it.
  void pull_channels(const float* x) {
    const int64_t rows = keys().rows(), chunk = keys().chunk(), block_size = kScanBlock * width_;
    float* stage = stage_.data();
    for (int64_t r = 0; r < rows; r += kScanBlock) {
      const float *dp = d_scores_.data() + r * chunk, *own_keys = keys().keys() + r * width_,
                  *rows_x = x + r * width_;
      float *dx = dx_.data() + r * width_, *copies = d_key_copies_.data() + copy_row(r) * width_;
      multiply({dp, chunk, 1, key_copies_.data() + copy_row(r) * width_, width_, stage, width_, kScanBlock, r,
                false},
               width_);
      add_products(dx, stage, keys().from_block(r), block_size);
      std::copy(rows_x, rows_x + block_size, stage);
      multiply_row(stage, keys().from_block(r), block_size);
      multiply({dp, 1, chunk, stage, width_, copies, width_, r, kScanBlock, true}, width_);
      blend_block<false>(dp + r, chunk, own_keys, keys().decay(r), width_, dx);
      blend_block<true>(dp + r, chunk, rows_x, keys().decay(r), width_, d_keys_.data() + r * width_);
    }
  }

  // d_keys_ before the readers: what the state after the chunk asks of the writes.
  void begin_keys() {
    const int64_t rows = keys().rows();
    if (!keys().channels()) {
      std::copy(d_ends_.data(), d_ends_.data() + rows * width_, d_keys_.data());
      keys().decay_to_end(d_keys_.data());
      return;
    }
    std::fill_n(d_keys_.data(), rows * width_, 0.0f);
    std::fill_n(d_key_copies_.data(), copy_row(rows) * width_, 0.0f);
    for (int64_t r = kScanBlock; r < rows; r += kScanBlock) {
      const int64_t old = r - kScanBlock;
      const float* earlier = key_copies_.data() + copy_row(old) * width_;
      float* to = key_copies_.data() + copy_row(r) * width_;
      std::copy(earlier, earlier + old * width_, to);
      std::copy(keys().keys() + old * width_, keys().keys() + r * width_, to + old * width_);
      for (int64_t j = 0; j < old; ++j)
        multiply_row(to + j * width_, keys().block_decay(old / kScanBlock), width_);
      multiply_row(to + old * width_, keys().to_block(old), kScanBlock * width_);
    }
  }

  // Everything that later blocks and the state ask of a key, decayed back to it.
  void end_keys() {
    const int64_t rows = keys().rows();
    float *later = d_ends_.data(), *d_keys = d_keys_.data();
    for (int64_t r = rows - kScanBlock; keys().channels() && r >= 0; r -= kScanBlock) {
      add_products(d_keys + r * width_, later + r * width_, keys().to_block(r), kScanBlock * width_);
      const float* copies = d_key_copies_.data() + copy_row(r) * width_;
      for (int64_t j = 0; j < r; ++j)
        multiply_row(later + j * width_, keys().block_decay(r / kScanBlock), width_);
      add_multiple(later, 1.0f, copies, r * width_);
    }
    for (int64_t t = 0; t < count_; ++t) {
      float* row = d_keys + t * width_;
      if (a_->decay != Decay::none) {
        std::copy(row, row + width_, sums_.data());
        multiply_row(sums_.data(), keys().keys() + t * width_, width_);
        add_multiple(d_logs_.data() + t * width_, -1.0f, sums_.data(), width_);
      }
      add_multiple(row, 1.0f, d_own_.data() + t * width_, width_);
      store_row(row, a_->dim, 1.0f, problem_->dk.at(batch_, head_, first_ + t), problem_->dk.dtype);
    }
  }

  void store_values() {
    for (int64_t t = 0; t < count_; ++t) {
      const int64_t at = t * width_v_;
      store_row(d_writes_.data() + at, a_->dim_v, 1.0f, problem_->dv.at(batch_, head_, first_ + t),
                problem_->dv.dtype);
      if (problem_->d_beta)
        problem_->d_beta[(batch_ * a_->heads_kv + head_) * a_->length + first_ + t] =
            dot(d_errors_.data() + at, chunk_.errors() + at, width_v_);
    }
  }

  void store_decays() {
    if (a_->decay == Decay::none) return;
    float* sums = sums_.data();
    std::copy(d_total_.data(), d_total_.data() + a_->dim, sums);
    std::fill(sums + a_->dim, sums + width_, 0.0f);
    for (int64_t t = count_ - 1; t >= 0; --t) {
      add_multiple(sums, 1.0f, d_logs_.data() + t * width_, width_);
      if (keys().channels()) {
        store_row(sums, a_->dim, 1.0f, problem_->d_log_decay.at<float>(batch_, head_, first_ + t));
        continue;
      }
      double sum = 0;
      for (int64_t c = 0; c < a_->dim; ++c) sum += static_cast<double>(sums[c]);
      if (problem_->d_log_head)
        d_log_head_ += sum;
      else
        *problem_->d_log_decay.at<float>(batch_, head_, first_ + t) = static_cast<float>(sum);
    }
  }

  const LinearScanBackwardProblem* problem_ = nullptr;
  const LinearScanArgs* a_ = nullptr;
  int64_t width_ = 0, width_v_ = 0, size_ = 0;
  int64_t batch_ = 0, head_ = 0, first_ = 0, count_ = 0;
  double d_log_head_ = 0;
  ScanChunk chunk_;
  memory::Buffer<float> states_, d_state_, queries_, decayed_, ends_, dx_, d_keys_, d_ends_, d_own_, d_logs_;
  memory::Buffer<float> d_o_, d_errors_, d_writes_, writes_t_, scores_, d_scores_, state_t_, d_state_t_;
  memory::Buffer<float> d_total_, sums_, stage_, own_, zeros_, key_copies_, d_key_copies_;
};

void scan_backward(const LinearScanBackwardProblem& problem) {
  const LinearScanArgs& a = problem.args;
  std::vector<ScanBackwardTask> tasks(static_cast<size_t>(threads()));
  parallel_for(a.batch * a.heads_kv, [&](int64_t unit, int worker) {
    ScanBackwardTask& task = tasks[static_cast<size_t>(worker)];
    if (!task.ready()) task.reserve(problem, a.chunk > 0 ? a.chunk : kBackwardChunk);
    task.run(unit / a.heads_kv, unit % a.heads_kv);
  });
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
HWY_EXPORT(scan_backward);

void cpu::run_linear_scan_backward(const LinearScanBackwardProblem& problem) {
  HWY_DYNAMIC_DISPATCH(scan_backward)(problem);
}

}  // namespace fovea::kernels
#endif
