// Page-aligned memory straight from the system: large weights and caches, and scratch that only grows. It begins as
// zeros, or is a part of a file.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

namespace mindport {

// What is read over and over is faster in large pages. What is first written step by step comes in small ones: to clear
// a large page for each of many layers takes many times as long as a step.
enum class Pages { large, small };

class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes, Pages pages = Pages::large) : bytes_(bytes) {
    if (bytes == 0) return;
    data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data_ == MAP_FAILED) {
      data_ = nullptr;
      throw std::bad_alloc();
    }
    // Advice only: nothing depends on it.
    if (bytes >= kHugePage) madvise(data_, bytes, pages == Pages::large ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  }
  // A part of a file, to read only: `offset` is a multiple of the page size. Processes that map it share the pages.
  static Memory of_file(int descriptor, int64_t offset, size_t bytes) {
    Memory memory;
    void* data = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, descriptor, offset);
    if (data == MAP_FAILED) throw std::runtime_error("the file cannot be mapped");
    memory.data_ = data;
    memory.bytes_ = bytes;
    madvise(data, bytes, MADV_WILLNEED);
    return memory;
  }
  Memory(Memory&& other) noexcept { *this = std::move(other); }
  Memory& operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Memory() {
    if (data_ != nullptr) munmap(data_, bytes_);
  }

  uint8_t* bytes() const { return static_cast<uint8_t*>(data_); }
  float* floats() const { return static_cast<float*>(data_); }
  size_t size() const { return bytes_; }

  // At least `count` floats; what was there before is lost when it grows.
  float* at_least(size_t count) {
    if (bytes_ < count * sizeof(float)) *this = Memory(count * sizeof(float) / 4 * 5);
    return floats();
  }

 private:
  friend class Reserve;
  static constexpr size_t kHugePage = size_t{2} << 20;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Scratch of each worker of a pool.
class WorkerMemory {
 public:
  void reserve(int workers) { memories_.resize(std::max(memories_.size(), static_cast<size_t>(workers))); }
  float* at_least(int worker, size_t count) { return memories_[static_cast<size_t>(worker)].at_least(count); }

 private:
  std::vector<Memory> memories_;
};

// Memory for matrices that are not known yet, cleared beside other work: the system clears a page when it is first
// touched, which takes about as long as filling it, and many times that where a virtual machine gets it only then.
class Reserve {
 public:
  static Reserve& instance() {
    static Reserve reserve;
    return reserve;
  }

  // What is left of one made before is given back.
  void make(size_t bytes) {
    const auto lock = lock_uncleared();
    rest_ = Memory(bytes);
    is_wanted_ = false;
  }

  // Returns when all of it is cleared, or as soon as somebody wants a part, or it is given back. Pages are touched one
  // by one: to have the system populate them would hold up all threads that map memory meanwhile.
  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    volatile uint8_t* bytes = rest_.bytes();
    const size_t page = page_size();
    for (size_t at = 0; at < rest_.size() && !is_wanted_; at += page) bytes[at] = 0;
  }

  // A part of it, or fresh memory when there is not enough left.
  Memory take(size_t bytes) {
    const auto lock = lock_uncleared();
    const size_t room = (bytes + page_size() - 1) / page_size() * page_size();
    if (bytes == 0 || room >= rest_.bytes_) return Memory(bytes);
    Memory part;
    part.data_ = rest_.data_;
    part.bytes_ = bytes;
    rest_.data_ = rest_.bytes() + room;
    rest_.bytes_ -= room;
    return part;
  }

 private:
  static size_t page_size() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

  // Whoever clears stops at the next page, so that none is touched that has gone.
  std::unique_lock<std::mutex> lock_uncleared() {
    is_wanted_ = true;
    return std::unique_lock<std::mutex>(mutex_);
  }

  std::mutex mutex_;
  std::atomic<bool> is_wanted_{false};
  Memory rest_;
};

// Pieces that live as long as the arena, one after the other: small matrices that share large pages.
class Arena {
 public:
  uint8_t* copy(const void* source, size_t bytes) {
    return static_cast<uint8_t*>(std::memcpy(room(bytes), source, bytes));
  }

  // Zeros.
  uint8_t* room(size_t bytes) {
    const size_t lines = (bytes + kLine - 1) / kLine * kLine;
    if (chunks_.empty() || used_ + lines > chunks_.back().size()) {
      chunks_.emplace_back(lines > kChunk ? lines : kChunk);
      used_ = 0;
    }
    uint8_t* place = chunks_.back().bytes() + used_;
    used_ += lines;
    return place;
  }

 private:
  static constexpr size_t kLine = 64, kChunk = size_t{64} << 20;  // what nobody touched takes no memory
  std::vector<Memory> chunks_;
  size_t used_ = 0;
};

}  // namespace mindport
