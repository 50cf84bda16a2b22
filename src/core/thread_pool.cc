// SPDX-License-Identifier: Apache-2.0
#include "fovea/core/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "fovea/core/error.h"

namespace fovea {
namespace {

// A decode step starts hundreds of short parallel regions a token; workers therefore spin this often before
// they sleep.
constexpr int kSpins = 20000;

thread_local bool inside_pool = false;

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

int available_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace

struct ThreadPool::State {
  std::vector<std::thread> workers;
  std::mutex run_mutex;  // one region at a time
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<uint64_t> generation{0};
  std::atomic<int> running{0};
  std::atomic<int64_t> next{0};
  std::atomic<bool> stop{false};
  int64_t tasks = 0;
  const TaskFunction* body = nullptr;
  std::exception_ptr failure;

  void work(int worker) {
    inside_pool = true;
    try {
      for (int64_t task = next.fetch_add(1); task < tasks; task = next.fetch_add(1)) (*body)(task, worker);
    } catch (...) {
      next.store(tasks);
      std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
    inside_pool = false;
  }

  void loop(int worker) {
    uint64_t seen = 0;
    for (;;) {
      for (int spin = 0; spin < kSpins && generation.load(std::memory_order_acquire) == seen; ++spin) relax();
      if (generation.load(std::memory_order_acquire) == seen) {
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] { return generation.load(std::memory_order_acquire) != seen; });
      }
      seen = generation.load(std::memory_order_acquire);
      if (stop.load()) return;
      work(worker);
      running.fetch_sub(1, std::memory_order_acq_rel);
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  require(threads >= 1 && threads <= 1024, "threads = ", threads, " is outside 1..1024");
  for (int worker = 1; worker < threads; ++worker)
    state_->workers.emplace_back([state = state_.get(), worker] { state->loop(worker); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stop.store(true);
    state_->generation.fetch_add(1, std::memory_order_acq_rel);
  }
  state_->wake.notify_all();
  for (auto& worker : state_->workers) worker.join();
}

int ThreadPool::threads() const { return static_cast<int>(state_->workers.size()) + 1; }

void ThreadPool::run(int64_t tasks, const TaskFunction& body) {
  if (tasks <= 0) return;
  if (inside_pool || tasks == 1 || state_->workers.empty()) {
    for (int64_t task = 0; task < tasks; ++task) body(task, 0);
    return;
  }
  std::lock_guard only_one(state_->run_mutex);
  State& s = *state_;
  s.tasks = tasks;
  s.body = &body;
  s.failure = nullptr;
  s.next.store(0);
  s.running.store(static_cast<int>(s.workers.size()));
  {
    std::lock_guard lock(s.mutex);
    s.generation.fetch_add(1, std::memory_order_acq_rel);
  }
  s.wake.notify_all();
  s.work(0);
  while (s.running.load(std::memory_order_acquire) != 0) relax();
  if (s.failure) std::rethrow_exception(s.failure);
}

namespace {
std::mutex default_mutex;
std::shared_ptr<ThreadPool> default_pool;

std::shared_ptr<ThreadPool> current_pool() {
  std::lock_guard lock(default_mutex);
  if (!default_pool) default_pool = std::make_shared<ThreadPool>(available_cores());
  return default_pool;
}
}  // namespace

void set_threads(int threads) {
  require(threads >= 0, "threads = ", threads, " is negative");
  auto pool = std::make_shared<ThreadPool>(threads == 0 ? available_cores() : threads);
  std::lock_guard lock(default_mutex);
  default_pool = std::move(pool);
}

int threads() { return current_pool()->threads(); }

void parallel_for(int64_t tasks, const TaskFunction& body) { current_pool()->run(tasks, body); }

}  // namespace fovea
