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

// One turn of a waiting loop. Now and then the core is offered to others, in case whoever is waited for needs
// it.
void relax(int turn) {
  if (turn % 64 == 63) return std::this_thread::yield();
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

int available_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace

// A region is open while `epoch` is odd. A worker counts itself into `active` before it looks at the epoch
// again, and the caller closes the epoch before it waits for `active` to fall to zero: whoever comes late
// sees a closed region and leaves, so a region never waits for a worker that the system has not scheduled.
struct ThreadPool::State {
  std::vector<std::thread> workers;
  std::mutex run_mutex;  // one region at a time
  std::mutex mutex;      // guards sleeping and `failure`
  std::condition_variable wake;
  std::atomic<uint64_t> epoch{0};
  std::atomic<int> active{0};
  std::atomic<int> sleeping{0};
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

  // Waits for an epoch beyond `seen`: spinning first, then asleep.
  uint64_t next_epoch(uint64_t seen) {
    for (int spin = 0; spin < kSpins && epoch.load() == seen; ++spin) relax(spin);
    if (epoch.load() == seen) {
      std::unique_lock lock(mutex);
      sleeping.fetch_add(1);
      wake.wait(lock, [&] { return epoch.load() != seen; });
      sleeping.fetch_sub(1);
    }
    return epoch.load();
  }

  void loop(int worker) {
    for (uint64_t seen = 0;;) {
      seen = next_epoch(seen);
      if (stop.load()) return;
      if (seen % 2 == 0) continue;
      active.fetch_add(1);
      if (epoch.load() == seen) work(worker);
      active.fetch_sub(1);
    }
  }

  void advance_epoch() {
    epoch.fetch_add(1);
    if (sleeping.load() == 0) return;
    { std::lock_guard lock(mutex); }
    wake.notify_all();
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  require(threads >= 1 && threads <= 1024, "threads = ", threads, " is outside 1..1024");
  for (int worker = 1; worker < threads; ++worker)
    state_->workers.emplace_back([state = state_.get(), worker] { state->loop(worker); });
}

ThreadPool::~ThreadPool() {
  state_->stop.store(true);
  {
    std::lock_guard lock(state_->mutex);
    state_->epoch.fetch_add(1);
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
  s.advance_epoch();
  s.work(0);
  s.epoch.fetch_add(1);
  for (int spin = 0; s.active.load() != 0; ++spin) relax(spin);
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
