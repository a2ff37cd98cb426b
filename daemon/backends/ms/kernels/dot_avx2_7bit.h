// Dot products of bytes with AVX2, of activations of 7 bits: 2 * 255 * 64 fits 16 bits, so weights need no sign.
#pragma once

#include "pairs_avx2.h"

namespace mindport {
namespace {

using U = I;  // weights as they are
constexpr bool kSignedBytes = false;
constexpr int kWholeTileRows = 6;
constexpr int whole_width(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

alignas(32) const int16_t kOnes[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

inline U load_bytes(const uint8_t* p) { return i_load(p); }
// By hand: gcc 12 keeps the ones in a register that a tile of six rows needs.
inline I dot(I sum, U w, I a) {
  I product;
  asm("vpmaddubsw %2, %3, %1\n\t"
      "vpmaddwd %4, %1, %1\n\t"
      "vpaddd %1, %0, %0"
      : "+x"(sum), "=&x"(product)
      : "x"(a), "x"(w), "m"(kOnes));
  return sum;
}

}  // namespace
}  // namespace mindport
