// Many rows with AVX2: words of rows times weights, two columns a word summed in 32 bits, or four in 16.
#pragma once

#include "whole_table.h"

namespace mindport {
namespace {

// A word of a row times two registers of weights, added to their sums. By hand: gcc 12 takes more registers for it than
// there are and keeps the sums in memory.
#define MINDPORT_ADD_WORD(multiply, add)                                  \
  I a, product;                                                           \
  asm("vpbroadcastd %6, %2\n\t" multiply " %2, %4, %3\n\t" add            \
      " %3, %0, %0\n\t" multiply " %2, %5, %3\n\t" add " %3, %1, %1"      \
      : "+x"(sums[0]), "+x"(sums[1]), "=&x"(a), "=&x"(product)            \
      : "x"(w[0]), "x"(w[1]), "m"(word))

struct Pairs {
  static inline void add(I (&sums)[2], const I (&w)[2], const int32_t& word) { MINDPORT_ADD_WORD("vpmaddwd", "vpaddd"); }
};
struct Bytes {
  static inline void add(I (&sums)[2], const I (&w)[2], const int32_t& word) { MINDPORT_ADD_WORD("vpmaddubsw", "vpaddw"); }
};
#undef MINDPORT_ADD_WORD

template <class Products, int M, int P>
__attribute__((always_inline)) inline void add_words(Sums<M, P>& sums, const uint8_t* b, const int32_t* a,
                                                     int64_t count, Fetch& fetch) {
#pragma GCC unroll 1
  for (int64_t q = count; q > 0; q -= kFetchWords) {
    fetch.next();
#pragma GCC unroll 4
    for (int i = 0; i < kFetchWords; ++i) {
      const I w[2] = {i_load(b + i * 64), i_load(b + i * 64 + 32)};
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) Products::add(sums.s[m][0], w, a[i * M + m]);
    }
    b += kFetchWords * 64;
    a += kFetchWords * M;
  }
}

}  // namespace
}  // namespace mindport
