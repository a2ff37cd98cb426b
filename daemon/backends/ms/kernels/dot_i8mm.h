// Dot products of bytes with NEON's dot product of unsigned and signed numbers, which comes with its matrix product.
#pragma once

#include "sums_neon.h"

namespace mindport {
namespace {

using U = uint8x16_t;  // weights as they are
constexpr bool kSignedBytes = false;
constexpr bool kNarrowSums = false;
constexpr int kWholeTileRows = 6;
constexpr int whole_width(int rows) { return rows <= 2 ? 2 : 1; }

inline U load_bytes(const uint8_t* p) { return vld1q_u8(p); }
inline I word(const int32_t* p) { return first_lane(p); }
inline I dot(I sum, U w, I a) { return vusdotq_laneq_s32(sum, w, vreinterpretq_s8_s32(a), 0); }
inline I dot_nibbles(I sum, I w, I a) { return dot(sum, vreinterpretq_u8_s32(w), a); }

}  // namespace
}  // namespace mindport
