// Sums of products of bytes with AVX2: pairs are summed in 16 bits, so they must not overflow there.
#pragma once

#include "dot_ymm.h"

namespace mindport {
namespace {

constexpr bool kNarrowSums = true;
constexpr int kManyRows = 6, kManyWidth = 1, kFetchWords = 4;

inline I add_narrow(I sum, I pairs) { return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))); }
// By hand: gcc 12 multiplies early and keeps the products in memory.
inline I dot_nibbles(I pairs, I w, I a) {
  I product;
  asm("vpmaddubsw %2, %3, %1\n\tvpaddw %1, %0, %0" : "+x"(pairs), "=&x"(product) : "x"(a), "x"(w));
  return pairs;
}

}  // namespace
}  // namespace mindport
