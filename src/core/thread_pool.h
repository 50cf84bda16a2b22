// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace fovea {

using TaskFunction = std::function<void(int64_t task, int worker)>;

/// Threads that share a list of independent tasks. Tasks are handed out dynamically, so a result is the same
/// for any number of threads exactly when each task writes its own output; every kernel here is written that
/// way, and sums across tasks are taken in task order afterwards.
class ThreadPool {
 public:
  /// `threads` includes the caller.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;
  /// Runs body(task, worker) for task = 0 .. tasks-1, worker in [0, threads). Returns when all are done; the
  /// first exception of a body is rethrown here. A nested call runs on the calling thread.
  void run(int64_t tasks, const TaskFunction& body);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The pool used by kernels: set_threads(n) replaces it (0 = one per available core).
void set_threads(int threads);
int threads();
void parallel_for(int64_t tasks, const TaskFunction& body);

}  // namespace fovea
