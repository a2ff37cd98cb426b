// Dot products of bytes with AVX-VNNI.
#pragma once

#include "dot_ymm.h"

namespace mindport {
namespace {

using U = I;  // weights as they are
constexpr bool kSignedBytes = false;
constexpr bool kNarrowSums = false;
constexpr int kWholeTileRows = 6;
constexpr int kManyRows = 6, kManyWidth = 1, kFetchWords = 1;
constexpr int whole_width(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }

inline U load_bytes(const uint8_t* p) { return i_load(p); }
// By hand: gcc 12 copies the sums of the intrinsic to other registers and back.
inline I dot(I sum, U w, I a) {
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(w), "x"(a));
  return sum;
}
inline I dot_nibbles(I sum, I w, I a) { return dot(sum, w, a); }

}  // namespace
}  // namespace mindport
