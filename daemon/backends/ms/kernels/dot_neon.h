// Dot products of bytes with NEON: pairs of products are summed in 16 bits, so they must not overflow there.
#pragma once

#include "sums_neon.h"

namespace mindport {
namespace {

using U = int8x16_t;
constexpr bool kSignedBytes = true;
constexpr bool kNarrowSums = true;
constexpr int kWholeTileRows = 4;
constexpr int whole_width(int rows) { return rows == 1 ? 2 : 1; }

// Pairs of neighbours: 2 * 128 * 127 fits where 2 * 255 * 127 would not.
inline int16x8_t pairs_of(int8x16_t w, int8x16_t a) {
  return vpaddq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(a)), vmull_high_s8(w, a));
}

inline I word(const int32_t* p) { return i_set1(*p); }
inline U load_bytes(const uint8_t* p) { return signed_bytes(p); }
inline I add_narrow(I sum, I pairs) { return vpadalq_s16(sum, vreinterpretq_s16_s32(pairs)); }
inline I dot(I sum, U w, I a) { return vpadalq_s16(sum, pairs_of(w, vreinterpretq_s8_s32(a))); }
// Eight of these stay below 2^15: 8 * 2 * 15 * 127.
inline I dot_nibbles(I pairs, I w, I a) {
  const int16x8_t more = pairs_of(vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(a));
  return vreinterpretq_s32_s16(vaddq_s16(vreinterpretq_s16_s32(pairs), more));
}

}  // namespace
}  // namespace mindport
