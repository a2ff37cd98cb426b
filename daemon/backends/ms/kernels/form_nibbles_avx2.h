// Many rows with AVX2: weights of four bits become bytes, whose products are summed in 16 bits over a block.
#pragma once

#include "spread.h"

namespace mindport {
namespace {

// A word of a row times two registers of weights, added to their sums in 16 bits. By hand: gcc 12 takes more registers
// for it than there are. Eight of these stay below 2^15: 8 * 2 * 15 * 127.
inline void add_bytes(I (&sums)[2], const I (&w)[2], const int32_t& word) {
  I a, product;
  asm("vpbroadcastd %6, %2\n\t"
      "vpmaddubsw %2, %4, %3\n\t"
      "vpaddw %3, %0, %0\n\t"
      "vpmaddubsw %2, %5, %3\n\t"
      "vpaddw %3, %1, %1"
      : "+x"(sums[0]), "+x"(sums[1]), "=&x"(a), "=&x"(product)
      : "x"(w[0]), "x"(w[1]), "m"(word));
}

struct NibbleForm {
  static constexpr bool kSigned = false;
  static constexpr int64_t kBlockBytes = kBlock * kLanes, kBlockWords = kBlock / 4;
  static constexpr void (*weights)(const uint8_t*, int64_t, uint8_t*) = spread_nibbles;
  static constexpr void (*rows)(const int32_t*, int64_t, int64_t, int32_t*) = nullptr;  // as they are

  template <int M, int P>
  __attribute__((always_inline)) static inline void add(Sums<M, P>& sums, const uint8_t* b, int64_t, const int32_t* a,
                                                        int64_t blocks, Fetch& fetch) {
    for (; blocks > 0; --blocks) {
      Sums<M, P> part;
#pragma GCC unroll 16
      for (int i = 0; i < 2 * M; ++i) (&part.s[0][0][0])[i] = i_set1(0);
#pragma GCC unroll 1
      for (int64_t q = kBlockWords; q > 0; q -= kFetchWords) {
        fetch.next();
#pragma GCC unroll 4
        for (int i = 0; i < kFetchWords; ++i) {
          const I w[2] = {i_load(b + i * 64), i_load(b + i * 64 + 32)};
#pragma GCC unroll 16
          for (int m = 0; m < M; ++m) add_bytes(part.s[m][0], w, a[i * M + m]);
        }
        b += kFetchWords * 64;
        a += kFetchWords * M;
      }
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
