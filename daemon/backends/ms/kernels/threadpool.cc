#include "threadpool.h"

#include <chrono>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "format.h"

namespace mindport {
namespace {

constexpr auto kSpin = std::chrono::microseconds(60);
constexpr int64_t kFetchedMost = 1 << 19;  // bytes by a worker: half of a large second-level cache
constexpr int kLinesAtOnce = 4;

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

template <class Ready, class Idle>
bool spin_until(const Ready& ready, const Idle& idle) {
  const auto limit = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      idle();
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
  fetching_ = std::vector<Fetching>(static_cast<size_t>(threads));
  const uint64_t round = round_.load() / kRound;
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

void ThreadPool::expect(const MemoryRange& range) {
  expected_bytes_.store(range.bytes, std::memory_order_relaxed);
  expected_.store(range.data, std::memory_order_relaxed);
}

// A few lines of what is read next. Whatever the address, fetching harms nothing.
void ThreadPool::fetch(int worker) {
  Fetching& own = fetching_[static_cast<size_t>(worker)];
  const char* range = expected_.load(std::memory_order_relaxed);
  if (own.range != range) {
    const int64_t bytes = expected_bytes_.load(std::memory_order_relaxed);
    own.range = range;
    own.next = range + bytes / size() * worker;
    own.end = own.next + std::min(kFetchedMost, bytes / size());
  }
  if (own.next >= own.end) return relax();
  for (int i = 0; i < kLinesAtOnce; ++i, own.next += kLine) __builtin_prefetch(own.next, 0, 2);
}

// False when the round is over.
bool ThreadPool::enter(uint64_t round) {
  for (uint64_t now = round_.load(); now / kRound == round && (now & kOpen) != 0;)
    if (round_.compare_exchange_weak(now, now + 1)) return true;
  return false;
}

void ThreadPool::work(int worker, uint64_t seen) {
  FloatMode mode;
  while (true) {
    const auto called = [&] { return round_.load() / kRound != seen || stopping_.load(); };
    if (!spin_until(called, [&] { fetch(worker); })) {
      std::unique_lock<std::mutex> lock(mutex_);
      ++asleep_;
      wake_.wait(lock, called);
      --asleep_;
    }
    if (stopping_) return;
    seen = round_.load() / kRound;
    if (!enter(seen)) continue;
    perform(worker);
    round_.fetch_sub(1);
  }
}

void ThreadPool::run(const std::function<void(int)>& body) {
  FloatMode mode;
  body_ = &body;
  round_.fetch_add(kRound + kOpen);
  if (asleep_.load() > 0) {
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }
  perform(0);
  round_.fetch_sub(kOpen);
  const auto done = [&] { return (round_.load() & kInside) == 0; };
  while (!spin_until(done, [&] { fetch(0); })) std::this_thread::yield();
  body_ = nullptr;
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

}  // namespace mindport
