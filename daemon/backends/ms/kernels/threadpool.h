// A fork-join pool: the caller is worker 0. Workers spin for some tens of microseconds between the phases of a step
// and sleep otherwise.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace mindport {

// Multiply-adds below which handing work to another thread costs more than it saves, the more so on a busy machine.
constexpr int64_t kWorthAThread = 200'000;

class ThreadPool {
 public:
  static ThreadPool& instance();
  ~ThreadPool();

  void resize(int threads);
  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Runs body(worker) once on every worker and returns when all have; rethrows the first exception.
  void run(const std::function<void(int)>& body);

  // Calls body(first, last, worker) over [0, count) in pieces taken in order, each a multiple of `grain` but the last.
  template <class Body>
  void each(int64_t count, int64_t grain, const Body& body) {
    if (count <= grain || size() == 1) {
      if (count > 0) body(int64_t{0}, count, 0);
      return;
    }
    std::atomic<int64_t> next{0};
    const int64_t share = 3 * size();
    run([&](int worker) {
      int64_t first = next.load(std::memory_order_relaxed);
      while (first < count) {
        // Large pieces first, small ones last: an even finish although cores differ in speed.
        const int64_t piece = std::max<int64_t>((count - first) / share / grain, 1) * grain;
        const int64_t last = std::min(count, first + piece);
        if (!next.compare_exchange_weak(first, last, std::memory_order_relaxed)) continue;
        body(first, last, worker);
        first = next.load(std::memory_order_relaxed);
      }
    });
  }

 private:
  ThreadPool() = default;
  void work(int worker, uint64_t seen);
  void perform(int worker);
  void stop();

  std::vector<std::thread> workers_;
  const std::function<void(int)>* body_ = nullptr;
  std::atomic<uint64_t> round_{0};
  std::atomic<int> pending_{0};
  std::atomic<int> asleep_{0};
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::mutex failure_mutex_;
  std::exception_ptr failure_;
};

}  // namespace mindport
