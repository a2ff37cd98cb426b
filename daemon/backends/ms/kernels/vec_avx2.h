// Registers of eight floats: AVX2, FMA, F16C.
#pragma once

#include <immintrin.h>

#include "format.h"

namespace mindport {
namespace {

using W = __m256;
constexpr int L = 8;
constexpr int kRowsOfTile = 6;  // most rows of a tile of blocks
constexpr int kFewRows = 6;     // most rows a tile takes, and panels it may take without running out of registers
constexpr int max_width(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
constexpr int kPackedWidth = 1;
constexpr int kLeastColumns = 4;  // of a step of a tile

inline W w_load(const float* p) { return _mm256_loadu_ps(p); }
inline void w_store(float* p, W a) { _mm256_storeu_ps(p, a); }
inline W w_set1(float x) { return _mm256_set1_ps(x); }
inline W w_fma(W a, W b, W c) { return _mm256_fmadd_ps(a, b, c); }
// sum += a * b. By hand: gcc 12 multiplies before it has the registers, and keeps sums in memory.
inline void w_add_product(W& sum, W a, W b) { asm("vfmadd231ps %1, %2, %0" : "+x"(sum) : "x"(a), "x"(b)); }
inline W w_add(W a, W b) { return _mm256_add_ps(a, b); }
inline W w_sub(W a, W b) { return _mm256_sub_ps(a, b); }
inline W w_mul(W a, W b) { return _mm256_mul_ps(a, b); }
inline W w_div(W a, W b) { return _mm256_div_ps(a, b); }
inline W w_max(W a, W b) { return _mm256_max_ps(a, b); }
inline W w_min(W a, W b) { return _mm256_min_ps(a, b); }
inline W w_exponent(W t) {
  const __m256i bits = _mm256_add_epi32(_mm256_castps_si256(t), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 23));
}
inline W w_minus_bits(int32_t bits, W a) {  // as integers
  return _mm256_castsi256_ps(_mm256_sub_epi32(_mm256_set1_epi32(bits), _mm256_castps_si256(a)));
}
inline W w_load_bfloat16(const uint16_t* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline W w_load_first_bfloat16(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), 16));
}
inline W w_load_second_bfloat16(const uint16_t* p) {
  const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(-65536)));
}
inline W w_load_float16(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline W w_load_int8(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

}  // namespace
}  // namespace mindport
