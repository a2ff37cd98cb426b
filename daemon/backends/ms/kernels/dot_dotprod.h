// Dot products of bytes with NEON's dot product instruction.
#pragma once

#include "sums_neon.h"

namespace mindport {
namespace {

using U = int8x16_t;
constexpr bool kSignedBytes = true;  // it takes two signed numbers
constexpr bool kNarrowSums = false;
constexpr int kWholeTileRows = 6;
constexpr int whole_width(int rows) { return rows <= 2 ? 2 : 1; }

inline U load_bytes(const uint8_t* p) { return signed_bytes(p); }
inline I word(const int32_t* p) { return first_lane(p); }
inline I dot(I sum, U w, I a) { return vdotq_laneq_s32(sum, w, vreinterpretq_s8_s32(a), 0); }
inline I dot_nibbles(I sum, I w, I a) { return dot(sum, vreinterpretq_s8_s32(w), a); }

}  // namespace
}  // namespace mindport
