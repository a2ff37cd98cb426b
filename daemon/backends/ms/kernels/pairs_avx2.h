// Sums of products of bytes with AVX2: pairs are summed in 16 bits, so they must not overflow there.
#pragma once

#include "dot_ymm.h"

namespace mindport {
namespace {

constexpr bool kNarrowSums = true;
constexpr int kManyRows = 6, kManyWidth = 1, kFetchWords = 4;

inline I add_narrow(I sum, I pairs) { return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))); }
// Eight of these stay below 2^15: 8 * 2 * 15 * 127.
inline I dot_nibbles(I pairs, I w, I a) { return _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w, a)); }

}  // namespace
}  // namespace mindport
