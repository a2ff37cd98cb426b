// Registers of sixteen floats: AVX-512F.
#pragma once

#include <immintrin.h>

#include "format.h"

namespace mindport {
namespace {

using W = __m512;
constexpr int L = 16;
constexpr int kRowsOfTile = 12;  // most rows of a tile of blocks
constexpr int kFewRows = 14;     // most rows a tile takes, and panels it may take without running out of registers
constexpr int max_width(int rows) { return rows <= 6 ? 4 : rows <= 9 ? 3 : 2; }
constexpr int kPackedWidth = 2;
constexpr int kLeastColumns = 1;  // of a step of a tile

inline W w_load(const float* p) { return _mm512_loadu_ps(p); }
inline void w_store(float* p, W a) { _mm512_storeu_ps(p, a); }
inline W w_set1(float x) { return _mm512_set1_ps(x); }
inline W w_fma(W a, W b, W c) { return _mm512_fmadd_ps(a, b, c); }
inline void w_add_product(W& sum, W a, W b) { sum = w_fma(a, b, sum); }
inline W w_add(W a, W b) { return _mm512_add_ps(a, b); }
inline W w_sub(W a, W b) { return _mm512_sub_ps(a, b); }
inline W w_mul(W a, W b) { return _mm512_mul_ps(a, b); }
inline W w_div(W a, W b) { return _mm512_div_ps(a, b); }
inline W w_max(W a, W b) { return _mm512_max_ps(a, b); }
inline W w_min(W a, W b) { return _mm512_min_ps(a, b); }
inline W w_exponent(W t) {
  const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(t), _mm512_set1_epi32(127));
  return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 23));
}
inline W w_minus_bits(int32_t bits, W a) {  // as integers
  return _mm512_castsi512_ps(_mm512_sub_epi32(_mm512_set1_epi32(bits), _mm512_castps_si512(a)));
}
inline W w_load_bfloat16(const uint16_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline W w_load_first_bfloat16(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
inline W w_load_second_bfloat16(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(-65536)));
}
inline W w_load_float16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline W w_load_int8(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

}  // namespace
}  // namespace mindport
