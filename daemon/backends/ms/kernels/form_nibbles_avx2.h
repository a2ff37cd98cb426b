// Many rows with AVX2: weights of four bits become bytes, whose products are summed in 16 bits.
#pragma once

#include "spread.h"
#include "words_avx2.h"

namespace mindport {
namespace {

struct NibbleForm {
  static constexpr bool kSigned = false, kNarrow = true;
  static constexpr int64_t kBlockBytes = kBlock * kLanes, kBlockWords = kBlock / 4;
  static constexpr void (*weights)(const uint8_t*, int64_t, uint8_t*) = spread_nibbles;
  static constexpr void (*rows)(const int32_t*, int64_t, int64_t, int32_t*) = nullptr;  // as they are

  template <int M, int P>
  __attribute__((always_inline)) static inline void add(Sums<M, P>& sums, const uint8_t* b, int64_t, const int32_t* a,
                                                        int64_t blocks, Fetch& fetch) {
    add_words<Bytes>(sums, b, a, blocks * kBlockWords, fetch);
  }
};

}  // namespace
}  // namespace mindport
