// Operations on single rows: norms, activations, rotary embedding. Include after tile.h.
#pragma once

#include "attention_tile.h"
#include "table.h"

namespace mindport {
namespace {

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
  V squares = set1(0.0f);
  for (int64_t i = 0; i < n; i += 16) {
    const V v = load_part(x + i, n - i, 0.0f);
    squares = fma(v, v, squares);
  }
  const float mean = reduce_add(squares) / static_cast<float>(n);
  // Squares that overflow would make a row of zeros, which looks like a result.
  const V factor = set1(__builtin_isinf(mean) ? __builtin_nanf("") : 1.0f / __builtin_sqrtf(mean + eps));
  for (int64_t i = 0; i < n; i += 16) {
    const V v = mul(load_part(x + i, n - i, 0.0f), factor);
    store_part(out + i, mul(v, load_part(weight + i, n - i, 0.0f)), n - i);
  }
}

void swiglu(const float* pairs, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += 16, pairs += 32) store_part(out + i, mul(silu(load(pairs)), load(pairs + 16)), n - i);
}

void add_rows(const float* x, const float* y, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += 16)
    store_part(out + i, add(load_part(x + i, n - i, 0.0f), load_part(y + i, n - i, 0.0f)), n - i);
}

void residual(const float* x, const float* delta, float scale, int64_t n, float* out) {
  const V factor = set1(scale);
  for (int64_t i = 0; i < n; i += 16) {
    const V d = mul(load_part(delta + i, n - i, 0.0f), factor);
    store_part(out + i, add(load_part(x + i, n - i, 0.0f), d), n - i);
  }
}

void scale_row(float factor, int64_t n, float* x) {
  const V f = set1(factor);
  for (int64_t i = 0; i < n; i += 16) store_part(x + i, mul(load_part(x + i, n - i, 0.0f), f), n - i);
}

void rotate(float* head, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; i += 16) {
    const int64_t n = half - i;
    const V a = load_part(head + i, n, 0.0f), b = load_part(head + half + i, n, 0.0f);
    const V c = load_part(cos + i, n, 0.0f), s = load_part(sin + i, n, 0.0f);
    store_part(head + i, sub(mul(a, c), mul(b, s)), n);
    store_part(head + half + i, add(mul(b, c), mul(a, s)), n);
  }
}

void exp_row(const float* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += 16) store_part(out + i, exp(load_part(x + i, n - i, 0.0f)), n - i);
}

void silu_row(const float* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += 16) store_part(out + i, silu(load_part(x + i, n - i, 0.0f)), n - i);
}

bool finite(const float* x, int64_t n) {
  V poison = set1(0.0f);  // stays zero unless an element is infinite or NaN
  for (int64_t i = 0; i < n; i += 16) poison = fma(load_part(x + i, n - i, 0.0f), set1(0.0f), poison);
  return reduce_add(poison) == 0.0f;
}

// Index of the first of the largest; of no use where something is NaN.
int64_t largest(const float* x, int64_t n) {
  constexpr int64_t kAtOnce = 256;
  float most = -__builtin_inff();
  int64_t begin = 0;
  for (int64_t block = 0; block < n; block += kAtOnce) {
    const int64_t end = n - block < kAtOnce ? n : block + kAtOnce;
    V top = set1(-__builtin_inff());
    for (int64_t i = block; i < end; i += 16) top = max(top, load_part(x + i, end - i, -__builtin_inff()));
    const float found = reduce_max(top);
    if (found > most) most = found, begin = block;
  }
  while (begin + 1 < n && x[begin] != most) ++begin;
  return begin;
}

constexpr KernelTable make_table() {
  KernelTable table{};
  fill_tiles(table);
  table.attention = make_attention_table();
  table.rms_norm = rms_norm;
  table.swiglu = swiglu;
  table.add = add_rows;
  table.residual = residual;
  table.scale = scale_row;
  table.rotate = rotate;
  table.exp = exp_row;
  table.silu = silu_row;
  table.finite = finite;
  table.largest = largest;
  return table;
}

}  // namespace
}  // namespace mindport
