// Dot products of bytes with AVX2, of activations of 8 bits.
#pragma once

#include "pairs_avx2.h"

namespace mindport {
namespace {

constexpr bool kSignedBytes = true;
constexpr int kWholeTileRows = 4;
constexpr int whole_width(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

// A weight as magnitude and sign: 2 * 128 * 127 fits where 2 * 255 * 127 would not.
struct U {
  __m256i magnitude, weight;
};

inline U load_bytes(const uint8_t* p) {
  const __m256i weight = _mm256_xor_si256(i_load(p), _mm256_set1_epi8(-128));
  return {_mm256_abs_epi8(weight), weight};
}
inline I dot(I sum, const U& w, I a) {
  return add_narrow(sum, _mm256_maddubs_epi16(w.magnitude, _mm256_sign_epi8(a, w.weight)));
}

}  // namespace
}  // namespace mindport
