// Registers of four floats in plain C++; compilers map them to SSE2 or NEON.
#pragma once

#include "format.h"

namespace mindport {
namespace {

typedef float W __attribute__((vector_size(16)));
typedef uint32_t WI __attribute__((vector_size(16)));
constexpr int L = 4;
constexpr int kRowsOfTile = 4;  // most rows of a tile of blocks
constexpr int kFewRows = 4;     // most rows a tile takes, and panels it may take without running out of registers
constexpr int max_width(int rows) { return rows == 1 ? 2 : 1; }
constexpr int kPackedWidth = 1;
constexpr int kLeastColumns = 1;  // of a step of a tile

inline W w_load(const float* p) {
  W r;
  __builtin_memcpy(&r, p, sizeof r);
  return r;
}
inline void w_store(float* p, W a) { __builtin_memcpy(p, &a, sizeof a); }
inline W w_set1(float x) { return W{x, x, x, x}; }
inline W w_fma(W a, W b, W c) {
  W r = c;
  for (int i = 0; i < L; ++i) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return r;
}
inline void w_add_product(W& sum, W a, W b) { sum = w_fma(a, b, sum); }
inline W w_add(W a, W b) { return a + b; }
inline W w_sub(W a, W b) { return a - b; }
inline W w_mul(W a, W b) { return a * b; }
inline W w_div(W a, W b) { return a / b; }
inline W w_max(W a, W b) { return a > b ? a : b; }  // the second when either is NaN, as x86 does
inline W w_min(W a, W b) { return a < b ? a : b; }
inline W w_exponent(W t) {
  WI bits;
  __builtin_memcpy(&bits, &t, sizeof bits);
  bits = (bits + 127u) << 23;
  W r;
  __builtin_memcpy(&r, &bits, sizeof r);
  return r;
}
inline W w_minus_bits(int32_t bits, W a) {  // as integers
  WI less;
  __builtin_memcpy(&less, &a, sizeof less);
  less = static_cast<uint32_t>(bits) - less;
  W r;
  __builtin_memcpy(&r, &less, sizeof r);
  return r;
}
inline W w_load_bfloat16(const uint16_t* p) {
  return W{from_bfloat16(p[0]), from_bfloat16(p[1]), from_bfloat16(p[2]), from_bfloat16(p[3])};
}
inline W w_load_first_bfloat16(const uint16_t* p) {
  return W{from_bfloat16(p[0]), from_bfloat16(p[2]), from_bfloat16(p[4]), from_bfloat16(p[6])};
}
inline W w_load_second_bfloat16(const uint16_t* p) { return w_load_first_bfloat16(p + 1); }
inline W w_load_float16(const uint16_t* p) {
  return W{from_float16(p[0]), from_float16(p[1]), from_float16(p[2]), from_float16(p[3])};
}
inline W w_load_int8(const int8_t* p) {
  return W{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]), static_cast<float>(p[3])};
}

}  // namespace
}  // namespace mindport
