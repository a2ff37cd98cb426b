// A fork-join pool: the caller is worker 0. Workers spin for some tens of microseconds between the phases of a step,
// fetching what is read next, and sleep otherwise.
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
constexpr int64_t kWorthForking = 256 << 10;  // bytes of weights that one thread reads as fast as two that must meet

struct MemoryRange {
  const char* data = nullptr;
  int64_t bytes = 0;
};

class ThreadPool {
 public:
  static ThreadPool& instance();
  ~ThreadPool();

  void resize(int threads);
  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // What the stretches after the next go through: once these are begun, a worker that waits fetches from it.
  void announce(const MemoryRange& range) { announced_ = range; }

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

  // The same for work that streams through memory: a worker goes through a stretch of its own, so that what it fetches
  // ahead is its own next piece, and then takes over half of what another has left.
  template <class Body>
  void each_stretch(int64_t count, int64_t grain, const Body& body) {
    if (count <= grain || size() == 1) {
      if (count > 0) body(int64_t{0}, count, 0);
      return;
    }
    expect(announced_);
    const int64_t grains = (count + grain - 1) / grain;
    Stretches stretches(grains, size());
    run([&](int worker) {
      for (int64_t first, last; stretches.take(worker, first, last);)
        body(first * grain, std::min(count, last * grain), worker);
    });
  }

 private:
  // What is left of each worker's stretch.
  class Stretches {
   public:
    Stretches(int64_t count, int workers) : left_(static_cast<size_t>(workers)) {
      for (int64_t w = 0; w < workers; ++w)
        left_[static_cast<size_t>(w)].range = pack(count * w / workers, count * (w + 1) / workers);
    }

    // The next piece of a worker; false when nothing is left.
    bool take(int worker, int64_t& first, int64_t& last) {
      auto& own = left_[static_cast<size_t>(worker)].range;
      while (true) {
        for (uint64_t seen = own.load(); begin(seen) < end(seen);) {
          first = begin(seen);
          last = first + std::max<int64_t>((end(seen) - first) / 4, 1);
          if (own.compare_exchange_weak(seen, pack(last, end(seen)))) return true;
        }
        if (!take_over(own)) return false;
      }
    }

   private:
    struct alignas(64) Left {
      std::atomic<uint64_t> range{0};
    };

    static uint64_t pack(int64_t first, int64_t last) { return static_cast<uint64_t>(first) << 32 | static_cast<uint64_t>(last); }
    static int64_t begin(uint64_t range) { return static_cast<int64_t>(range >> 32); }
    static int64_t end(uint64_t range) { return static_cast<int64_t>(range & 0xffffffffu); }

    bool take_over(std::atomic<uint64_t>& own) {
      for (Left& other : left_) {
        for (uint64_t seen = other.range.load(); begin(seen) < end(seen);) {
          const int64_t half = begin(seen) + (end(seen) - begin(seen)) / 2;
          if (!other.range.compare_exchange_weak(seen, pack(begin(seen), half))) continue;
          own.store(pack(half, end(seen)));
          return true;
        }
      }
      return false;
    }

    std::vector<Left> left_;
  };

  // Runs body(0), which returns when nothing is left to do, and lets every other worker run it that comes in time: who
  // has no processor just now is not waited for. Rethrows the first exception.
  void run(const std::function<void(int)>& body);

  ThreadPool() = default;
  // What a worker fetches of a range: the beginning of its own stretch.
  struct alignas(64) Fetching {
    const char *range = nullptr, *next = nullptr, *end = nullptr;
  };
  void expect(const MemoryRange& range);
  void fetch(int worker);
  void work(int worker, uint64_t seen);
  bool enter(uint64_t round);
  void perform(int worker);
  void stop();

  std::vector<std::thread> workers_;
  const std::function<void(int)>* body_ = nullptr;
  // Number of the round, whether it may be entered, and how many workers are inside.
  std::atomic<uint64_t> round_{0};
  static constexpr uint64_t kInside = 0xffff, kOpen = 1 << 16, kRound = 1 << 17;
  std::atomic<int> asleep_{0};
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  MemoryRange announced_;
  std::atomic<const char*> expected_{nullptr};
  std::atomic<int64_t> expected_bytes_{0};
  std::vector<Fetching> fetching_{1};
  std::mutex failure_mutex_;
  std::exception_ptr failure_;
};

}  // namespace mindport
