// Sixteen floats as a value (V), whatever the registers (W, L floats each) are; exp and reductions on them.
// Include after one of the vec_*.h headers.
#pragma once

namespace mindport {
namespace {

constexpr int kRegisters = 16 / L;
constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer held in the low bits

struct V {
  W w[kRegisters];
};

#define MINDPORT_EACH(expression) \
  V r;                            \
  _Pragma("GCC unroll 4") for (int i = 0; i < kRegisters; ++i) r.w[i] = (expression); \
  return r

inline V load(const float* p) { MINDPORT_EACH(w_load(p + i * L)); }
inline V set1(float x) { MINDPORT_EACH(w_set1(x)); }
inline V fma(V a, V b, V c) { MINDPORT_EACH(w_fma(a.w[i], b.w[i], c.w[i])); }
inline V add(V a, V b) { MINDPORT_EACH(w_add(a.w[i], b.w[i])); }
inline V sub(V a, V b) { MINDPORT_EACH(w_sub(a.w[i], b.w[i])); }
inline V mul(V a, V b) { MINDPORT_EACH(w_mul(a.w[i], b.w[i])); }
inline V div(V a, V b) { MINDPORT_EACH(w_div(a.w[i], b.w[i])); }
inline V max(V a, V b) { MINDPORT_EACH(w_max(a.w[i], b.w[i])); }
inline V min(V a, V b) { MINDPORT_EACH(w_min(a.w[i], b.w[i])); }
inline V minus_bits(int32_t bits, V a) { MINDPORT_EACH(w_minus_bits(bits, a.w[i])); }
inline V exponent(V t) { MINDPORT_EACH(w_exponent(t.w[i])); }
#undef MINDPORT_EACH

inline void store(float* p, V a) {
  for (int i = 0; i < kRegisters; ++i) w_store(p + i * L, a.w[i]);
}

// The first n of sixteen floats; `fill` in the other lanes.
inline V load_part(const float* p, int64_t n, float fill) {
  if (n >= 16) return load(p);
  float buffer[16];
  for (int64_t i = 0; i < 16; ++i) buffer[i] = i < n ? p[i] : fill;
  return load(buffer);
}

inline void store_part(float* p, V a, int64_t n) {
  if (n >= 16) return store(p, a);
  float buffer[16];
  store(buffer, a);
  for (int64_t i = 0; i < n; ++i) p[i] = buffer[i];
}

inline float reduce_add(V a) {
  float lane[16];
  store(lane, a);
  for (int step = 8; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lane[i] += lane[i + step];
  return lane[0];
}

inline float reduce_max(V a) {
  float lane[16];
  store(lane, a);
  for (int step = 8; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lane[i] = lane[i] > lane[i + step] ? lane[i] : lane[i + step];
  return lane[0];
}

// exp to about 1 ulp, for x up to 88; below -87.3 it is the smallest normal number; NaN gives NaN.
__attribute__((always_inline)) inline V exp_below(V x) {
  x = max(set1(-87.3f), x);
  const V t = fma(x, set1(1.44269504f), set1(kMagic));
  const V n = sub(t, set1(kMagic));
  V r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  V p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, mul(r, r), add(r, set1(1.0f)));
  return mul(p, exponent(t));
}

// The same for any x: above 88 it stays finite.
__attribute__((always_inline)) inline V exp(V x) { return exp_below(min(set1(88.0f), x)); }

// 1 / x to about 1 ulp, for x from 1 to 2^125.6: a guess from the bits of x, then its error cubed, twice. Division would
// take longer than the exp before it.
__attribute__((always_inline)) inline V reciprocal(V x) {
  const V minus = sub(set1(0.0f), x);
  V guess = minus_bits(0x7ef311c7, x);
  for (int i = 0; i < 2; ++i) {
    const V error = fma(minus, guess, set1(1.0f));
    guess = fma(guess, fma(error, error, error), guess);
  }
  return guess;
}

__attribute__((always_inline)) inline V silu(V x) {
  const V e = exp_below(min(set1(87.0f), sub(set1(0.0f), x)));
  return mul(x, reciprocal(add(set1(1.0f), e)));
}

}  // namespace
}  // namespace mindport
