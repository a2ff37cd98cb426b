// Registers of eight 32-bit sums, shared by AVX2 and AVX-VNNI.
#pragma once

#include "vec_avx2.h"
// order matters: the register type first
#include "vector_math.h"

namespace mindport {
namespace {

using I = __m256i;

inline I i_set1(int32_t x) { return _mm256_set1_epi32(x); }
inline I word(const int32_t* p) { return i_set1(*p); }
inline I i_load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void i_store(uint8_t* p, I a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
inline I low_nibbles(I raw) { return _mm256_and_si256(raw, _mm256_set1_epi8(15)); }
inline I high_nibbles(I raw) { return _mm256_and_si256(_mm256_srli_epi32(raw, 4), _mm256_set1_epi8(15)); }
inline W to_float(I a) { return _mm256_cvtepi32_ps(a); }

inline I i_add(I a, I b) { return _mm256_add_epi32(a, b); }
inline I i_max(I a, I b) { return _mm256_max_epi32(a, b); }
inline I magnitude(W v) { return _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fffffff)); }
inline I magic_int(W v) { return _mm256_sub_epi32(_mm256_castps_si256(v), _mm256_castps_si256(_mm256_set1_ps(kMagic))); }
inline int32_t reduce_add_int(I a) {
  __m128i x = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}
inline int32_t reduce_max_int(I a) {
  __m128i x = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}

// Sixteen whole numbers to four words of four bytes.
inline void store_quads(const I (&whole)[2], int32_t* out, int64_t stride) {
  const __m256i halves = _mm256_packs_epi32(whole[0], whole[1]);  // of a and b: a0-3 b0-3 | a4-7 b4-7
  const __m256i bytes = _mm256_packs_epi16(halves, halves);       // words a0 b0 a0 b0 | a1 b1 a1 b1
  const __m128i low = _mm256_castsi256_si128(bytes), high = _mm256_extracti128_si256(bytes, 1);
  out[0] = _mm_cvtsi128_si32(low);
  out[stride] = _mm_cvtsi128_si32(high);
  out[2 * stride] = _mm_extract_epi32(low, 1);
  out[3 * stride] = _mm_extract_epi32(high, 1);
}

}  // namespace
}  // namespace mindport
