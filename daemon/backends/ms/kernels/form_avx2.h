// Many rows with AVX2, which multiplies bytes only two at a time into 16 bits: weights of 8 bits are widened to 16,
// whose products are summed in 32.
#pragma once

#include "words_avx2.h"

namespace mindport {
namespace {

// Each word of four bytes to two words of two.
inline void widen_weights(const uint8_t* b, int64_t blocks, uint8_t* out) {
  for (int64_t i = 0; i < blocks * kBlock / 4; ++i) {
#pragma GCC unroll 2
    for (int n = 0; n < kRegisters; ++n) {
      const I bytes = _mm256_xor_si256(i_load(b + i * 64 + n * 32), _mm256_set1_epi8(-128));
      const I even = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), odd = _mm256_srai_epi16(bytes, 8);
      i_store(out + i * 128 + n * 32, _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa));
      i_store(out + i * 128 + 64 + n * 32, _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa));
    }
  }
}

inline void widen_rows(const int32_t* words, int64_t count, int64_t rows, int32_t* out) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t r = 0; r < rows; ++r) {
      const auto word = static_cast<uint32_t>(words[i * rows + r]);
      const auto byte = [&](int at) { return static_cast<uint32_t>(static_cast<int8_t>(word >> 8 * at)); };
      out[2 * i * rows + r] = static_cast<int32_t>((byte(0) & 0xffffu) | byte(1) << 16);
      out[(2 * i + 1) * rows + r] = static_cast<int32_t>((byte(2) & 0xffffu) | byte(3) << 16);
    }
}

struct ByteForm {
  static constexpr bool kSigned = true, kNarrow = false;
  static constexpr int64_t kBlockBytes = 2 * kBlock * kLanes, kBlockWords = kBlock / 2;
  static constexpr void (*weights)(const uint8_t*, int64_t, uint8_t*) = widen_weights;
  static constexpr void (*rows)(const int32_t*, int64_t, int64_t, int32_t*) = widen_rows;

  template <int M, int P>
  __attribute__((always_inline)) static inline void add(Sums<M, P>& sums, const uint8_t* b, int64_t, const int32_t* a,
                                                        int64_t blocks, Fetch& fetch) {
    add_words<Pairs>(sums, b, a, blocks * kBlockWords, fetch);
  }
};

}  // namespace
}  // namespace mindport
