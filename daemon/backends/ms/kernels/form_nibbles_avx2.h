// Many rows with AVX2: weights of four bits become bytes, whose products are summed in 16 bits over a block.
#pragma once

#include "spread.h"
#include "words_avx2.h"

namespace mindport {
namespace {

struct NibbleForm {
  static constexpr bool kSigned = false;
  static constexpr int64_t kBlockBytes = kBlock * kLanes, kBlockWords = kBlock / 4;
  static constexpr void (*weights)(const uint8_t*, int64_t, uint8_t*) = spread_nibbles;
  static constexpr void (*rows)(const int32_t*, int64_t, int64_t, int32_t*) = nullptr;  // as they are

  template <int M, int P>
  __attribute__((always_inline)) static inline void add(Sums<M, P>& sums, const uint8_t* b, int64_t, const int32_t* a,
                                                        int64_t blocks, Fetch& fetch) {
    for (; blocks > 0; --blocks, b += kBlockBytes, a += kBlockWords * M) {
      Sums<M, P> part;
#pragma GCC unroll 16
      for (int i = 0; i < 2 * M; ++i) (&part.s[0][0][0])[i] = i_set1(0);
      // Eight of these stay below 2^15: 8 * 2 * 15 * 127.
      add_words<Bytes>(part, b, a, kBlockWords, fetch);
#pragma GCC unroll 16
      for (int i = 0; i < 2 * M; ++i) {
        I& sum = (&sums.s[0][0][0])[i];
        sum = add_narrow(sum, (&part.s[0][0][0])[i]);
      }
    }
  }
};

}  // namespace
}  // namespace mindport
