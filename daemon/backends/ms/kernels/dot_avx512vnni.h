// Dot products of bytes with AVX-512 VNNI, sixteen outputs a register.
#pragma once

#include "vec_avx512.h"
// order matters: the register type first
#include "vector_math.h"

namespace mindport {
namespace {

using I = __m512i;
using U = I;  // weights as they are
constexpr bool kSignedBytes = false;
constexpr bool kNarrowSums = false;
constexpr int kWholeTileRows = 12;
constexpr int kManyRows = 12, kManyWidth = 2, kFetchWords = 1;
constexpr int whole_width(int rows) { return rows <= 5 ? 4 : 2; }

inline I i_set1(int32_t x) { return _mm512_set1_epi32(x); }
inline I word(const int32_t* p) { return i_set1(*p); }
inline I i_load(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline void i_store(uint8_t* p, I a) { _mm512_storeu_si512(p, a); }
inline U load_bytes(const uint8_t* p) { return i_load(p); }
inline I low_nibbles(I raw) { return _mm512_and_si512(raw, _mm512_set1_epi32(0x0f0f0f0f)); }
inline I high_nibbles(I raw) { return _mm512_and_si512(_mm512_srli_epi32(raw, 4), _mm512_set1_epi32(0x0f0f0f0f)); }
// By hand: gcc 12 copies the sums of the intrinsic to other registers and back.
inline I dot(I sum, U w, I a) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(a));
  return sum;
}
inline I dot_nibbles(I sum, I w, I a) { return dot(sum, w, a); }
inline W to_float(I a) { return _mm512_cvtepi32_ps(a); }

inline I i_add(I a, I b) { return _mm512_add_epi32(a, b); }
inline I i_max(I a, I b) { return _mm512_max_epi32(a, b); }
inline I magnitude(W v) { return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff)); }
inline I magic_int(W v) { return _mm512_sub_epi32(_mm512_castps_si512(v), _mm512_castps_si512(_mm512_set1_ps(kMagic))); }
inline int32_t reduce_add_int(I a) { return _mm512_reduce_add_epi32(a); }
inline int32_t reduce_max_int(I a) { return _mm512_reduce_max_epi32(a); }

// Sixteen whole numbers to four words of four bytes.
inline void store_quads(const I (&whole)[1], int32_t* out, int64_t stride) {
  const __m128i bytes = _mm512_cvtepi32_epi8(whole[0]);
  out[0] = _mm_cvtsi128_si32(bytes);
  out[stride] = _mm_extract_epi32(bytes, 1);
  out[2 * stride] = _mm_extract_epi32(bytes, 2);
  out[3 * stride] = _mm_extract_epi32(bytes, 3);
}

}  // namespace
}  // namespace mindport
