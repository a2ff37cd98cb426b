// Tiles of two rows or more by NEON's matrix product: two outputs times two rows over eight columns at once, twice the
// work of a dot product. Include after whole_tile.h.
#pragma once

#include "whole_table.h"

namespace mindport {
namespace {

// Of each pair of rows and two outputs a register: output by output, the two rows side by side.
template <int M, int P>
struct PairSums {
  static constexpr int kPairs = (M + 1) / 2;
  I s[kPairs][P][2 * kRegisters];
};

// Words of one to four rows; what is beyond the last row has no meaning.
template <int Rows>
inline I load_words(const int32_t* a) {
  if constexpr (Rows == 1) return vld1q_dup_s32(a);
  if constexpr (Rows == 2) return vcombine_s32(vld1_s32(a), vdup_n_s32(0));
  if constexpr (Rows == 3) return vcombine_s32(vld1_s32(a), vld1_dup_s32(a + 2));
  return vld1q_s32(a);
}

// Eight columns of the rows from `First` on, pair by pair.
template <int M, int First = 0>
__attribute__((always_inline)) inline void load_pairs(const int32_t* a, int8x16_t* pairs) {
  constexpr int rows = M - First < 4 ? M - First : 4;
  const I low = load_words<rows>(a + First), high = load_words<rows>(a + M + First);
  pairs[0] = vreinterpretq_s8_s32(vzip1q_s32(low, high));
  if constexpr (rows > 2) pairs[1] = vreinterpretq_s8_s32(vzip2q_s32(low, high));
  if constexpr (First + 4 < M) load_pairs<M, First + 4>(a, pairs + 2);
}

template <int M, int P>
__attribute__((always_inline)) inline void set_offsets(PairSums<M, P>& sums, const int32_t* offsets) {
#pragma GCC unroll 16
  for (int m = 0; m < M; m += 2) {
    const I pair = vzip1q_s32(i_set1(offsets[m]), i_set1(offsets[m + 1 < M ? m + 1 : m]));
#pragma GCC unroll 64
    for (int i = 0; i < P * 2 * kRegisters; ++i) (&sums.s[m / 2][0][0])[i] = pair;
  }
}

// The whole numbers of `blocks` blocks of columns, eight columns at a time.
template <int Bits, int M, int P>
__attribute__((always_inline)) inline void blocks_of_pairs(PairSums<M, P>& sums, const uint8_t* b, int64_t panel,
                                                           const int32_t* a, int64_t blocks, Next& next) {
#pragma GCC unroll 1
  for (int64_t q = blocks * 4; q > 0; --q) {
    int8x16_t rows[PairSums<M, P>::kPairs];
    load_pairs<M>(a, rows);
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      __builtin_prefetch(next.line + p * panel);
      if constexpr (Bits == 8) __builtin_prefetch(next.line + p * panel + 64);
#pragma GCC unroll 16
      for (int n = 0; n < kRegisters; ++n) {
        const uint8_t* at = b + p * panel + n * 16;
        const I first = Bits == 8 ? i_load(at) : low_nibbles(i_load(at));
        const I second = Bits == 8 ? i_load(at + 64) : high_nibbles(i_load(at));
        const uint8x16_t low = vreinterpretq_u8_s32(vzip1q_s32(first, second));
        const uint8x16_t high = vreinterpretq_u8_s32(vzip2q_s32(first, second));
#pragma GCC unroll 16
        for (int i = 0; i < PairSums<M, P>::kPairs; ++i) {
          I* sum = sums.s[i][p] + 2 * n;
          sum[0] = vusmmlaq_s32(sum[0], low, rows[i]);
          sum[1] = vusmmlaq_s32(sum[1], high, rows[i]);
        }
      }
    }
    b += 8 * Bits * 2;
    next.line += Bits / 4 * next.step;
    a += 2 * M;
  }
}

template <int M, int P>
__attribute__((always_inline)) inline Sums<M, P> row_by_row(const PairSums<M, P>& pairs) {
  Sums<M, P> sums;
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
      for (int n = 0; n < kRegisters; ++n) {
        const I* pair = pairs.s[m / 2][p] + 2 * n;
        sums.s[m][p][n] = m % 2 == 0 ? vuzp1q_s32(pair[0], pair[1]) : vuzp2q_s32(pair[0], pair[1]);
      }
  return sums;
}

template <int Bits, int M, int P>
void pair_tile(const WholeTile& t) {
  const int32_t* a = t.a.words;
  const uint8_t* b = t.b;
  Next next{static_cast<const char*>(t.ahead), t.ahead_step};
  Totals<M, P> totals;
  load_totals(t, totals);
  for (int64_t block = 0, group = 0; block < t.blocks; ++group) {
    const int64_t count = t.group_blocks < t.blocks - block ? t.group_blocks : t.blocks - block;
    PairSums<M, P> pairs;
    set_offsets(pairs, t.a.offsets + group * M);
    blocks_of_pairs<Bits>(pairs, b, t.b_panel, a, count, next);
    b += count * kBlock * kLanes * Bits / 8;
    a += count * kBlock / 4 * M;
    block += count;
    join_group(t, group, row_by_row(pairs), totals);
  }
  store_totals(t, totals);
}

template <int Bits, int M>
constexpr void fill_pairs(WholeTable& table) {
  auto& widths = table.tile[Bits == 8 ? 0 : 1][M];
  widths[0] = pair_tile<Bits, M, 1>;
  if constexpr (2 <= whole_width(M)) widths[1] = pair_tile<Bits, M, 2>;
  if constexpr (M < kWholeTileRows) fill_pairs<Bits, M + 1>(table);
}

constexpr WholeTable make_pair_table() {
  WholeTable table = make_whole_table();
  fill_pairs<8, 2>(table);
  fill_pairs<4, 2>(table);
  return table;
}

}  // namespace
}  // namespace mindport
