// Dot products of bytes in plain C++, four outputs a register.
#pragma once

#include "vec_portable.h"
// order matters: the register type first
#include "vector_math.h"

namespace mindport {
namespace {

typedef int32_t I __attribute__((vector_size(16)));
using U = I;  // weights as they are
constexpr bool kSignedBytes = false;
constexpr bool kNarrowSums = false;
constexpr int kWholeTileRows = 4;
constexpr int whole_width(int rows) { return rows == 1 ? 2 : 1; }

inline I i_set1(int32_t x) { return I{x, x, x, x}; }
inline I word(const int32_t* p) { return i_set1(*p); }
inline I i_load(const uint8_t* p) {
  I r;
  __builtin_memcpy(&r, p, sizeof r);
  return r;
}
inline U load_bytes(const uint8_t* p) { return i_load(p); }
inline I low_nibbles(I raw) { return raw & 0x0f0f0f0f; }
inline I high_nibbles(I raw) { return (raw >> 4) & 0x0f0f0f0f; }
inline I dot(I sum, U w, I a) {
  sum += (w & 255) * (a << 24 >> 24);
  sum += ((w >> 8) & 255) * (a << 16 >> 24);
  sum += ((w >> 16) & 255) * (a << 8 >> 24);
  return sum + ((w >> 24) & 255) * (a >> 24);
}
inline I dot_nibbles(I sum, I w, I a) { return dot(sum, w, a); }
inline W to_float(I a) { return W{float(a[0]), float(a[1]), float(a[2]), float(a[3])}; }

inline I i_add(I a, I b) { return a + b; }
inline I i_max(I a, I b) { return a > b ? a : b; }
inline I bits_of(W v) {
  I r;
  __builtin_memcpy(&r, &v, sizeof r);
  return r;
}
inline I magnitude(W v) { return bits_of(v) & 0x7fffffff; }
inline I magic_int(W v) { return bits_of(v) - bits_of(w_set1(kMagic)); }
inline int32_t reduce_add_int(I a) { return a[0] + a[1] + a[2] + a[3]; }
inline int32_t reduce_max_int(I a) {
  int32_t most = a[0];
  for (int i = 1; i < 4; ++i) most = a[i] > most ? a[i] : most;
  return most;
}

// Sixteen whole numbers to four words of four bytes.
inline void store_quads(const I (&whole)[4], int32_t* out, int64_t stride) {
  for (int i = 0; i < 4; ++i) {
    const I byte = whole[i] & 255;
    out[i * stride] = byte[0] | byte[1] << 8 | byte[2] << 16 | static_cast<int32_t>(static_cast<uint32_t>(byte[3]) << 24);
  }
}

}  // namespace
}  // namespace mindport
