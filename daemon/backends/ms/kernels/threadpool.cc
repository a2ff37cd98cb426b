#include "threadpool.h"

#include <chrono>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mindport {
namespace {

constexpr auto kSpin = std::chrono::microseconds(60);

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Rounding to nearest with subnormals kept, whatever the thread that calls was set to: results must not depend on it.
class FloatMode {
 public:
#if defined(__x86_64__)
  FloatMode() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~FloatMode() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  FloatMode() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
  }
  ~FloatMode() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  uint64_t saved_;
#endif
};

template <class Ready>
bool spin_until(const Ready& ready) {
  const auto limit = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < limit);
  return ready();
}

}  // namespace

ThreadPool& ThreadPool::instance() {
  static ThreadPool pool;
  return pool;
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::resize(int threads) {
  if (threads == size()) return;
  stop();
  stopping_ = false;
  const uint64_t round = round_.load();
  for (int worker = 1; worker < threads; ++worker)
    workers_.emplace_back([this, worker, round] { work(worker, round); });
}

void ThreadPool::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (auto& thread : workers_) thread.join();
  workers_.clear();
}

void ThreadPool::perform(int worker) {
  try {
    (*body_)(worker);
  } catch (...) {
    std::lock_guard<std::mutex> lock(failure_mutex_);
    if (!failure_) failure_ = std::current_exception();
  }
}

void ThreadPool::work(int worker, uint64_t seen) {
  FloatMode mode;
  while (true) {
    const auto called = [&] { return round_.load() != seen || stopping_.load(); };
    if (!spin_until(called)) {
      std::unique_lock<std::mutex> lock(mutex_);
      ++asleep_;
      wake_.wait(lock, called);
      --asleep_;
    }
    if (stopping_) return;
    ++seen;
    perform(worker);
    pending_.fetch_sub(1);
  }
}

void ThreadPool::run(const std::function<void(int)>& body) {
  FloatMode mode;
  body_ = &body;
  if (!workers_.empty()) {
    pending_.store(static_cast<int>(workers_.size()));
    round_.fetch_add(1);
    if (asleep_.load() > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
  }
  perform(0);
  const auto done = [&] { return pending_.load() == 0; };
  while (!spin_until(done)) std::this_thread::yield();
  body_ = nullptr;
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

}  // namespace mindport
