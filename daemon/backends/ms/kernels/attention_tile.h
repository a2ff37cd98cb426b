// Attention over blocks of the cache, in registers. Include after tile.h.
#pragma once

#include "attention_table.h"

namespace mindport {
namespace {

template <>
struct Elements<Format::int8> {
  using Type = int8_t;
  static inline W load(const int8_t* p) { return w_load_int8(p); }
};

template <Format F, int M, int P>
inline void score_blocks(const ScoreTile& t, int64_t block) {
  constexpr int N = kRegisters;
  using E = typename Elements<F>::Type;
  const E* keys[P];
  const char* next[P];  // blocks to fetch meanwhile; of the smallest elements, their values too
  for (int p = 0; p < P; ++p) {
    keys[p] = reinterpret_cast<const E*>(t.keys[block + p]);
    next[p] = reinterpret_cast<const char*>(t.keys[block + P + p]);
  }
  W acc[M][P][N];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) acc[m][p][n] = w_set1(0.0f);
  const float* q = t.q;
  const int64_t q_row = t.q_row;
  for (int64_t k = 0; k < t.dim; ++k) {
    W kv[P][N];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) kv[p][n] = Elements<F>::load(keys[p] + k * 16 + n * L);
      __builtin_prefetch(next[p] + k * (sizeof(E) == 4 ? 64 : 32));
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const W qv = w_set1(q[m * q_row + k]);
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) w_add_product(acc[m][p][n], qv, kv[p][n]);
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      W factor = w_set1(1.0f);
      if constexpr (F == Format::int8)
        factor = w_load(reinterpret_cast<const float*>(t.keys[block + p] + t.scales) + n * L);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        W sum = acc[m][p][n];
        if constexpr (F == Format::int8) sum = w_mul(sum, factor);
        w_store(t.scores + m * t.scores_row + (block + p) * 16 + n * L, sum);
      }
    }
}

template <Format F, int M>
void score(const ScoreTile& t) {
  constexpr int P = max_width(M);
  int64_t block = 0;
  for (; block + P <= t.blocks; block += P) score_blocks<F, M, P>(t, block);
  for (; block < t.blocks; ++block) score_blocks<F, M, 1>(t, block);
}

template <Format F, int M, int P>
inline void mix_panels(const MixTile& t, int64_t panel) {
  constexpr int N = kRegisters;
  using E = typename Elements<F>::Type;
  W acc[M][P][N];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) acc[m][p][n] = w_set1(0.0f);
  const float* weights = t.weights;
  const int64_t weights_row = t.weights_row;
  for (int64_t first = 0; first < t.positions; first += 16) {
    const E* values = reinterpret_cast<const E*>(t.values[first / 16]) + panel * 256;
    const E* next = reinterpret_cast<const E*>(t.values[first / 16 + kBlocksAhead]) + panel * 256;
    const int64_t rows = t.positions - first < 16 ? t.positions - first : 16;
    for (int64_t k = 0; k < rows; ++k) {
      W vv[P][N];
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) vv[p][n] = Elements<F>::load(values + p * 256 + k * 16 + n * L);
        __builtin_prefetch(next + p * 256 + k * 16);
      }
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const W weight = w_set1(weights[m * weights_row + first + k]);
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
          for (int n = 0; n < N; ++n) w_add_product(acc[m][p][n], weight, vv[p][n]);
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) w_store(t.out + m * t.out_row + (panel + p) * 16 + n * L, acc[m][p][n]);
}

template <Format F, int M>
void mix(const MixTile& t) {
  constexpr int P = max_width(M);
  int64_t panel = 0;
  if constexpr (P == 3)  // two at a time until threes are left: one alone has more to load than to multiply
    for (; (t.panels - panel) % 3 != 0 && panel + 2 <= t.panels; panel += 2) mix_panels<F, M, 2>(t, panel);
  for (; panel + P <= t.panels; panel += P) mix_panels<F, M, P>(t, panel);
  for (; panel < t.panels; ++panel) mix_panels<F, M, 1>(t, panel);
}

// exp of x <= 0 less 2^-64, and at least zero: what is that small beside the largest weight would make products
// subnormal, which processors are slow at.
__attribute__((always_inline)) inline V weight_of(V x) {
  const V least = set1(5.421010862427522e-20f);
  return sub(max(least, exp_below(x)), least);  // NaN stays NaN
}

SoftmaxState softmax(float* scores, int64_t valid, int64_t padded) {
  const float lowest = -__builtin_inff();
  const int64_t filled = (valid + 15) / 16 * 16;
  for (int64_t i = valid; i < filled; ++i) scores[i] = lowest;  // weighs nothing
  V top = set1(lowest);
  for (int64_t i = 0; i < filled; i += 16) top = max(top, load(scores + i));
  const float maximum = reduce_max(top);
  V total = set1(0.0f);
  for (int64_t i = 0; i < filled; i += 16) {
    const V e = weight_of(sub(load(scores + i), set1(maximum)));
    store(scores + i, e);
    total = add(total, e);
  }
  for (int64_t i = filled; i < padded; i += 16) store(scores + i, set1(0.0f));
  return {maximum, reduce_add(total)};
}

void alibi(float slope, int64_t first, int64_t n, float* scores) {
  const float lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const V lane = load(lanes), factor = set1(slope);
  for (int64_t i = 0; i < n; i += 16) {  // whole numbers of this size are exact
    const V distance = add(set1(static_cast<float>(first + i)), lane);
    store_part(scores + i, fma(factor, distance, load_part(scores + i, n - i, 0.0f)), n - i);
  }
}

void scale_positions(float* weights, const uint8_t* const* values, int64_t scales, int64_t blocks) {
  for (int64_t b = 0; b < blocks; ++b)
    store(weights + b * 16, mul(load(weights + b * 16), load(reinterpret_cast<const float*>(values[b] + scales))));
}

float one_weight(float x) {
  float lanes[16];
  store(lanes, weight_of(set1(x)));
  return lanes[0];
}

void merge(SoftmaxState* state, float* values, SoftmaxState chunk, const float* chunk_values, int64_t n) {
  const float maximum = state->maximum > chunk.maximum ? state->maximum : chunk.maximum;
  const float old_weight = one_weight(state->maximum - maximum), new_weight = one_weight(chunk.maximum - maximum);
  state->maximum = maximum;
  state->total = __builtin_fmaf(state->total, old_weight, chunk.total * new_weight);
  const V o = set1(old_weight), c = set1(new_weight);
  for (int64_t i = 0; i < n; i += 16)
    store(values + i, fma(load(values + i), o, mul(load(chunk_values + i), c)));
}

void divide(const float* values, float divisor, int64_t n, float* out) {
  const V d = set1(divisor);
  for (int64_t i = 0; i < n; i += 16) store_part(out + i, div(load_part(values + i, n - i, 0.0f), d), n - i);
}

template <Format F, int M>
constexpr void fill_attention_rows(AttentionTable& table) {
  if constexpr (M <= kRowsOfTile) {
    table.score[static_cast<int>(F)][M] = score<F, M>;
    table.mix[static_cast<int>(F)][M] = mix<F, M>;
    if constexpr (M < kAttentionRows) fill_attention_rows<F, M + 1>(table);
  }
}

constexpr AttentionTable make_attention_table() {
  AttentionTable table{};
  table.tile_rows = kRowsOfTile;
  fill_attention_rows<Format::float32, 1>(table);
  fill_attention_rows<Format::bfloat16, 1>(table);
  fill_attention_rows<Format::float16, 1>(table);
  fill_attention_rows<Format::int8, 1>(table);
  table.softmax = softmax;
  table.alibi = alibi;
  table.scale_positions = scale_positions;
  table.merge = merge;
  table.divide = divide;
  return table;
}

}  // namespace
}  // namespace mindport
