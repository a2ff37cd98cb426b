// Registers of four floats: NEON.
#pragma once

#include <arm_neon.h>

#include "format.h"

namespace mindport {
namespace {

using W = float32x4_t;
constexpr int L = 4;
constexpr int kRowsOfTile = 6;  // most rows of a tile of blocks
constexpr int kFewRows = 6;     // most rows a tile takes, and panels it may take without running out of registers
constexpr int max_width(int rows) { return rows <= 2 ? 2 : 1; }
constexpr int kPackedWidth = 1;
constexpr int kLeastColumns = 1;  // of a step of a tile

inline W w_load(const float* p) { return vld1q_f32(p); }
inline void w_store(float* p, W a) { vst1q_f32(p, a); }
inline W w_set1(float x) { return vdupq_n_f32(x); }
inline W w_fma(W a, W b, W c) { return vfmaq_f32(c, a, b); }
inline void w_add_product(W& sum, W a, W b) { sum = w_fma(a, b, sum); }
inline W w_add(W a, W b) { return vaddq_f32(a, b); }
inline W w_sub(W a, W b) { return vsubq_f32(a, b); }
inline W w_mul(W a, W b) { return vmulq_f32(a, b); }
inline W w_div(W a, W b) { return vdivq_f32(a, b); }
// Not vmaxq and vminq: the second when either is NaN, as x86 does.
inline W w_max(W a, W b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline W w_min(W a, W b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
inline W w_exponent(W t) {
  return vreinterpretq_f32_u32(vshlq_n_u32(vaddq_u32(vreinterpretq_u32_f32(t), vdupq_n_u32(127)), 23));
}
inline W w_minus_bits(int32_t bits, W a) {  // as integers
  return vreinterpretq_f32_s32(vsubq_s32(vdupq_n_s32(bits), vreinterpretq_s32_f32(a)));
}
inline W w_load_bfloat16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
inline W w_load_first_bfloat16(const uint16_t* p) {
  return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u16(vld1q_u16(p)), 16));
}
inline W w_load_second_bfloat16(const uint16_t* p) {
  return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u16(vld1q_u16(p)), vdupq_n_u32(0xffff0000u)));
}
inline W w_load_float16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
inline W w_load_int8(const int8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, sizeof four);
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
}

}  // namespace
}  // namespace mindport
