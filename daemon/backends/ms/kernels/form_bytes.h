// Many rows: weights as bytes, four columns a word.
#pragma once

#include "whole_table.h"

namespace mindport {
namespace {

struct ByteForm {
  static constexpr bool kSigned = false, kNarrow = false;
  static constexpr int64_t kBlockBytes = kBlock * kLanes, kBlockWords = kBlock / 4;
  static constexpr void (*weights)(const uint8_t*, int64_t, uint8_t*) = nullptr;  // as they are
  static constexpr void (*rows)(const int32_t*, int64_t, int64_t, int32_t*) = nullptr;

  template <int M, int P>
  __attribute__((always_inline)) static inline void add(Sums<M, P>& sums, const uint8_t* b, int64_t panel,
                                                        const int32_t* a, int64_t blocks, Fetch& fetch) {
#pragma GCC unroll 1
    for (int64_t q = blocks * kBlockWords; q > 0; q -= kFetchWords) {
      fetch.next();
#pragma GCC unroll 4
      for (int i = 0; i < kFetchWords; ++i) {
        U w[P][kRegisters];
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
          for (int n = 0; n < kRegisters; ++n) w[p][n] = load_bytes(b + i * 64 + p * panel + n * 4 * L);
        dot_quad<M, P>(sums, w, a + i * M);
      }
      b += kFetchWords * 64;
      a += kFetchWords * M;
    }
  }
};

}  // namespace
}  // namespace mindport
