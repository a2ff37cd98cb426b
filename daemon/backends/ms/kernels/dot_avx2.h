// Dot products of bytes with AVX2: pairs of products are summed in 16 bits, so they must not overflow there.
#pragma once

#include "dot_ymm.h"

namespace mindport {
namespace {

constexpr bool kSignedBytes = true;
constexpr bool kNarrowSums = true;
constexpr int kWholeTileRows = 4;
constexpr int kManyRows = 6, kManyWidth = 1;
constexpr int whole_width(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

// A weight as magnitude and sign: 2 * 128 * 127 fits where 2 * 255 * 127 would not.
struct U {
  __m256i magnitude, weight;
};

inline U load_bytes(const uint8_t* p) {
  const __m256i weight = _mm256_xor_si256(i_load(p), _mm256_set1_epi8(-128));
  return {_mm256_abs_epi8(weight), weight};
}
inline I add_narrow(I sum, I pairs) { return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))); }
inline I dot(I sum, const U& w, I a) {
  return add_narrow(sum, _mm256_maddubs_epi16(w.magnitude, _mm256_sign_epi8(a, w.weight)));
}
// Eight of these stay below 2^15: 8 * 2 * 15 * 127.
inline I dot_nibbles(I pairs, I w, I a) { return _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w, a)); }

}  // namespace
}  // namespace mindport
