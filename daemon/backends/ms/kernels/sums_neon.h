// Registers of four 32-bit sums, shared by all dot products of NEON.
#pragma once

#include "vec_neon.h"
// order matters: the register type first
#include "vector_math.h"

namespace mindport {
namespace {

using I = int32x4_t;

inline I i_set1(int32_t x) { return vdupq_n_s32(x); }
// A word in the first lane. By hand: a plain load costs the arithmetic units nothing, as copying it to all lanes would.
inline I first_lane(const int32_t* p) {
  I r;
  asm("ldr %s0, %1" : "=w"(r) : "m"(*p));
  return r;
}
inline I i_load(const uint8_t* p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
inline int8x16_t signed_bytes(const uint8_t* p) { return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p), vdupq_n_u8(128))); }
inline I low_nibbles(I raw) { return vreinterpretq_s32_u8(vandq_u8(vreinterpretq_u8_s32(raw), vdupq_n_u8(15))); }
inline I high_nibbles(I raw) { return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(raw), 4)); }
inline W to_float(I a) { return vcvtq_f32_s32(a); }

inline I i_add(I a, I b) { return vaddq_s32(a, b); }
inline I i_max(I a, I b) { return vmaxq_s32(a, b); }
inline I magnitude(W v) { return vreinterpretq_s32_f32(vabsq_f32(v)); }
inline I magic_int(W v) { return vsubq_s32(vreinterpretq_s32_f32(v), vreinterpretq_s32_f32(w_set1(kMagic))); }
inline int32_t reduce_add_int(I a) { return vaddvq_s32(a); }
inline int32_t reduce_max_int(I a) { return vmaxvq_s32(a); }

// Sixteen whole numbers to four words of four bytes.
inline void store_quads(const I (&whole)[4], int32_t* out, int64_t stride) {
  const int16x8_t low = vcombine_s16(vmovn_s32(whole[0]), vmovn_s32(whole[1]));
  const int16x8_t high = vcombine_s16(vmovn_s32(whole[2]), vmovn_s32(whole[3]));
  const I words = vreinterpretq_s32_s8(vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
  vst1q_lane_s32(out, words, 0);
  vst1q_lane_s32(out + stride, words, 1);
  vst1q_lane_s32(out + 2 * stride, words, 2);
  vst1q_lane_s32(out + 3 * stride, words, 3);
}

}  // namespace
}  // namespace mindport
