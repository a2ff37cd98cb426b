// The product of whole numbers in registers. Include after vector_math.h and one of the dot_*.h headers.
#pragma once

#include "totals.h"
#include "whole_table.h"

namespace mindport {
namespace {

inline W load_scale(const uint8_t* p, Format format, int64_t index) {
  if (format == Format::float32) return w_load(reinterpret_cast<const float*>(p) + index);
  const auto* half = reinterpret_cast<const uint16_t*>(p) + index;
  return format == Format::bfloat16 ? w_load_bfloat16(half) : w_load_float16(half);
}

// Where a tile of few rows does: a line of each panel a step.
struct Next {
  const char* line;
  int64_t step;
};

template <int M, int P>
struct Sums {
  I s[M][P][kRegisters];
};

// Four columns: weights as bytes 0 .. 255 of 16 outputs a panel.
template <int M, int P>
__attribute__((always_inline)) inline void dot_quad(Sums<M, P>& sums, const U (&w)[P][kRegisters], const int32_t* a) {
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    const I av = word(a + m);
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
      for (int n = 0; n < kRegisters; ++n) sums.s[m][p][n] = dot(sums.s[m][p][n], w[p][n], av);
  }
}

// The whole numbers of `blocks` blocks of columns. One loop: gcc keeps the sums of nested loops in memory.
template <int M, int P>
__attribute__((always_inline)) inline void blocks_of_bytes(Sums<M, P>& sums, const uint8_t* b, int64_t panel,
                                                           const int32_t* a, int64_t blocks, Next& next) {
#pragma GCC unroll 1
  for (int64_t q = blocks * 8; q > 0; --q) {
    U w[P][kRegisters];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
      for (int n = 0; n < kRegisters; ++n) w[p][n] = load_bytes(b + p * panel + n * 4 * L);
      __builtin_prefetch(next.line + p * panel);
    }
    dot_quad<M, P>(sums, w, a);
    b += 64;
    next.line += next.step;
    a += M;
  }
}

template <int M, int P>
__attribute__((always_inline)) inline void quads_of_nibbles(Sums<M, P>& sums, const uint8_t* b, int64_t panel,
                                                            const int32_t* a, int64_t count, Next& next) {
#pragma GCC unroll 1
  for (int64_t q = count; q > 0; --q) {
    I raw[P][kRegisters];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
      for (int n = 0; n < kRegisters; ++n) raw[p][n] = i_load(b + p * panel + n * 4 * L);
      __builtin_prefetch(next.line + p * panel);
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      I w[P][kRegisters];
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
        for (int n = 0; n < kRegisters; ++n) w[p][n] = half == 0 ? low_nibbles(raw[p][n]) : high_nibbles(raw[p][n]);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const I av = word(a + half * M + m);
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
          for (int n = 0; n < kRegisters; ++n) sums.s[m][p][n] = dot_nibbles(sums.s[m][p][n], w[p][n], av);
      }
    }
    b += 64;
    next.line += next.step;
    a += 2 * M;
  }
}

template <int M, int P>
__attribute__((always_inline)) inline void set_offsets(Sums<M, P>& sums, const int32_t* offsets) {
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
    for (int i = 0; i < P * kRegisters; ++i) (&sums.s[m][0][0])[i] = i_set1(offsets[m]);
}

template <int M, int P>
__attribute__((always_inline)) inline void join_group(const WholeTile& t, int64_t group, const Sums<M, P>& sums,
                                                      Totals<M, P>& totals) {
  const float* a_scale = t.a.scales + group * M;
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
    for (int n = 0; n < kRegisters; ++n) {
      const W scale = load_scale(t.scales + p * t.scale_panel, t.scale_format, group * 16 + n * L);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const W factor = w_mul(scale, w_set1(a_scale[m]));
        totals.c[m][p][n] = w_fma(to_float(sums.s[m][p][n]), factor, totals.c[m][p][n]);
      }
    }
}

// The blocks whose products are summed together: of a group, or where sums are narrow of a part of one.
template <bool Narrow>
class Part {
 public:
  explicit Part(const WholeTile& t) : t_(t) { measure(); }
  explicit operator bool() const { return begin < t_.blocks; }
  void next() {
    const bool over = ends();
    begin += count;
    ++index;
    if (over) ++group;
    left_ = over ? t_.group_blocks : left_ - count;
    measure();
  }
  bool begins() const { return !Narrow || left_ == t_.group_blocks; }
  bool ends() const { return !Narrow || count == left_ || begin + count == t_.blocks; }

  int64_t begin = 0, count, group = 0, index = 0;

 private:
  void measure() {
    const int64_t most = Narrow && kNarrowBlocks < left_ ? kNarrowBlocks : left_;
    count = most < t_.blocks - begin ? most : t_.blocks - begin;
  }

  const WholeTile& t_;
  int64_t left_ = t_.group_blocks;
};

// Narrow sums are widened; those of a group's earlier parts wait in `kept`.
template <bool Narrow, int M, int P>
__attribute__((always_inline)) inline void join_part(const WholeTile& t, const Part<Narrow>& part, Sums<M, P>& sums,
                                                     Sums<M, P>& kept, Totals<M, P>& totals) {
  if constexpr (Narrow) {
#pragma GCC unroll 64
    for (int i = 0; i < M * P * kRegisters; ++i) {
      auto& sum = (&sums.s[0][0][0])[i];
      sum = add_narrow(part.begins() ? i_set1(0) : (&kept.s[0][0][0])[i], sum);
    }
    if (!part.ends()) {
      kept = sums;
      return;
    }
  }
  join_group(t, part.group, sums, totals);
}

// A line of each panel at `ahead` is fetched for each that is used, and the scales of the next panels meanwhile.
template <int Bits, int M, int P>
void whole_tile(const WholeTile& t) {
  Next next{static_cast<const char*>(t.ahead), t.ahead_step};
  const uint8_t* next_scales = t.scales + P * t.scale_panel;
  Totals<M, P> totals;
  load_totals(t, totals);
  Sums<M, P> kept;
  for (Part<Bits == 4 && kNarrowSums> part(t); part; part.next()) {
    const int32_t* a = t.a.words + part.begin * kBlock / 4 * M;
    const uint8_t* b = t.b + part.begin * kBlock * kLanes * Bits / 8;
    Sums<M, P> sums;
    if constexpr (Bits == 8 && kSignedBytes) sums = {};
    else set_offsets(sums, t.a.offsets + part.index * M);
    if constexpr (Bits == 8) blocks_of_bytes<M, P>(sums, b, t.b_panel, a, part.count, next);
    else quads_of_nibbles<M, P>(sums, b, t.b_panel, a, 4 * part.count, next);
    join_part(t, part, sums, kept, totals);
    if (part.ends()) {
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) __builtin_prefetch(next_scales + p * t.scale_panel);
      next_scales += 16 * element_bytes(t.scale_format);
    }
  }
  store_totals(t, totals);
}

// The largest magnitude of `n` values as the bits of a float; 0x7f800000 or more when one is infinite or NaN.
inline int32_t largest(const float* x, int64_t n) {
  I top = i_set1(0);
  for (int64_t i = 0; i < n; i += 16) {
    const V v = load_part(x + i, n - i, 0.0f);
#pragma GCC unroll 4
    for (int r = 0; r < kRegisters; ++r) top = i_max(top, magnitude(v.w[r]));
  }
  return reduce_max_int(top);
}

// Multiplies `n` values, rounds them to whole numbers, writes them as words of four bytes; their sums, lane by lane.
inline I round_values(const float* x, int64_t n, float inverse, int32_t* words, int64_t stride) {
  I sum = i_set1(0);
  for (int64_t i = 0; i < round_up(n, kBlock); i += 16) {
    const V v = load_part(x + i, n > i ? n - i : 0, 0.0f);
    I whole[kRegisters];
#pragma GCC unroll 4
    for (int r = 0; r < kRegisters; ++r) {
      whole[r] = magic_int(w_fma(v.w[r], w_set1(inverse), w_set1(kMagic)));
      sum = i_add(sum, whole[r]);
    }
    store_quads(whole, words, stride);
    words += 4 * stride;
  }
  return sum;
}

// What makes products with weights that begin at zero those with weights that begin at -half_range.
inline int32_t offset_of(I sums, const Rounding& how) {
  if (!how.narrow) return -how.half_range * reduce_add_int(sums);
  int32_t lanes[L], two[2] = {0, 0};
  __builtin_memcpy(lanes, &sums, sizeof lanes);
  for (int i = 0; i < L; ++i) two[i / 2 % 2] -= how.half_range * lanes[i];
  return static_cast<int32_t>((two[0] & 0xffff) | static_cast<uint32_t>(two[1]) << 16);
}

// One group of one row, the first of `out`.
inline void round_group(const float* x, int64_t n, const Rounding& how, const WholeRows& out) {
  const int32_t bits = largest(x, n);
  const bool sound = bits < 0x7f800000;
  const float most = bits_float(static_cast<uint32_t>(bits));
  const float inverse = sound && most > 1e-30f ? static_cast<float>(how.most) / most : 0.0f;
  *out.scales = !sound ? __builtin_nanf("") : inverse == 0.0f ? 0.0f : most / static_cast<float>(how.most);
  const int64_t part = how.narrow ? kNarrowBlocks * kBlock : n;
  int32_t* offset = out.offsets;
  for (int64_t begin = 0; begin < n; begin += part, offset += how.rows) {
    const int64_t size = begin + part < n ? part : n - begin;
    const I sums = round_values(x + begin, size, inverse, out.words + begin / 4 * how.rows, how.rows);
    *offset = sound ? offset_of(sums, how) : 0;
  }
}

// Group by group, whose words of all rows lie together.
inline void round_rows(const float* x, int64_t x_row, int64_t n, const Rounding& how, const WholeRows& out) {
  const int64_t rows = how.rows, parts = how.narrow ? narrow_parts(how.group / kBlock) : 1;
  for (int64_t begin = 0, at = 0; begin < n; begin += how.group, at += rows) {
    const int64_t size = begin + how.group < n ? how.group : n - begin;
    for (int64_t r = 0; r < rows; ++r)
      round_group(x + r * x_row + begin, size, how,
                  {out.words + begin / 4 * rows + r, out.scales + at + r, out.offsets + at * parts + r});
  }
}

template <int Bits, int M>
constexpr void fill_whole(WholeTable& table) {
  auto& widths = table.tile[Bits == 8 ? 0 : 1][M];
  if constexpr (M <= kWholeTileRows) {
    widths[0] = whole_tile<Bits, M, 1>;
    if constexpr (2 <= whole_width(M)) widths[1] = whole_tile<Bits, M, 2>;
    if constexpr (4 <= whole_width(M)) widths[2] = whole_tile<Bits, M, 4>;
  }
  if constexpr (M < kWholeRows) fill_whole<Bits, M + 1>(table);
}

constexpr WholeTable make_whole_table() {
  WholeTable table{};
  table.tile_rows = kWholeTileRows;
  table.narrow_sums = kNarrowSums;
  fill_whole<8, 1>(table);
  fill_whole<4, 1>(table);
  table.round = round_rows;
  return table;
}

}  // namespace
}  // namespace mindport
