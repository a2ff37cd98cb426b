// Matrix tiles whose accumulators stay in registers over the whole of k. Include after vector_math.h.
#pragma once

#include "table.h"
#include "totals.h"

namespace mindport {
namespace {

template <Format F>
struct Elements;
template <>
struct Elements<Format::float32> {
  using Type = float;
  static inline W load(const float* p) { return w_load(p); }
};
template <>
struct Elements<Format::bfloat16> {
  using Type = uint16_t;
  static inline W load(const uint16_t* p) { return w_load_bfloat16(p); }
};
template <>
struct Elements<Format::float16> {
  using Type = uint16_t;
  static inline W load(const uint16_t* p) { return w_load_float16(p); }
};

template <Format F>
constexpr int kColumnsOfLine = static_cast<int>(kLine / kLanes / element_bytes(F));

// Columns of a step of a tile's loop: where registers are few, counting would take a good part of the operations.
template <Format F>
constexpr int kColumnsOfStep = kColumnsOfLine<F> > kLeastColumns ? kColumnsOfLine<F> : kLeastColumns;

// Register n of a column, counted from a line of a panel.
template <Format F, class E>
inline W load_column(const E* line, int column, int n) {
  if constexpr (F == Format::bfloat16) {
    const E* words = line + column / 2 * 2 * kLanes + n * 2 * L;
    return column % 2 == 0 ? w_load_first_bfloat16(words) : w_load_second_bfloat16(words);
  } else {
    return Elements<F>::load(line + column * kLanes + n * L);
  }
}

// One column of M rows of A and P panels, counted from their lines at `b`.
template <Format F, int M, int P, class E>
__attribute__((always_inline)) inline void add_column(Totals<M, P>& totals, const E* b, int column, int64_t b_panel,
                                                      const float* a, int64_t a_row) {
  W bv[P][kRegisters];
#pragma GCC unroll 32
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 32
    for (int n = 0; n < kRegisters; ++n) bv[p][n] = load_column<F>(b + p * b_panel, column, n);
#pragma GCC unroll 32
  for (int m = 0; m < M; ++m) {
    const W av = w_set1(a[m * a_row]);
#pragma GCC unroll 32
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 32
      for (int n = 0; n < kRegisters; ++n) w_add_product(totals.c[m][p][n], av, bv[p][n]);
  }
}

// With a packed A.
template <Format F, int M, int P>
void packed_tile(const Tile& t) {
  using E = typename Elements<F>::Type;
  Totals<M, P> totals;
  load_totals(t, totals);
  const E* b = static_cast<const E*>(t.b);
  const float* a = t.a;
  const int64_t b_panel = t.b_panel;
  constexpr int kStep = kColumnsOfStep<F>;
  Fetch ahead(t, t.a);
  ahead.step *= kStep / kColumnsOfLine<F>;
  int64_t k = t.k;
#pragma GCC unroll 1
  for (; k >= kStep; k -= kStep) {
    ahead.next();
#pragma GCC unroll 32
    for (int i = 0; i < kStep; ++i) add_column<F, M, P>(totals, b, i, b_panel, a + i * M, 1);
    b += kStep * kLanes;
    a += kStep * M;
  }
#pragma GCC unroll 1
  for (int i = 0; i < k; ++i) add_column<F, M, P>(totals, b, i, b_panel, a + i * M, 1);
  store_totals(t, totals);
}

// A few rows of A as they lie. A line of each panel is fetched for each that is used: of its own next ones, or of those
// of `ahead`.
template <Format F, int M, int P>
void few_tile(const Tile& t) {
  using E = typename Elements<F>::Type;
  constexpr int kColumns = kColumnsOfLine<F>, kStep = kColumnsOfStep<F>;
  Totals<M, P> totals;
  load_totals(t, totals);

  const E* b = static_cast<const E*>(t.b);
  const float* a = t.a;
  const int64_t b_panel = t.b_panel, a_row = t.a_row;
  const char* ahead = t.ahead != nullptr ? static_cast<const char*>(t.ahead) : static_cast<const char*>(t.b) + kLead;
  const int64_t step = t.ahead != nullptr ? t.ahead_step : 64;
  int64_t k = t.k;
#pragma GCC unroll 1
  for (; k >= kStep; k -= kStep) {
#pragma GCC unroll 32
    for (int i = 0; i < kStep; ++i) {
      if (i % kColumns == 0) {
#pragma GCC unroll 32
        for (int p = 0; p < P; ++p) __builtin_prefetch(ahead + p * b_panel * static_cast<int64_t>(sizeof(E)));
        ahead += step;
      }
      add_column<F, M, P>(totals, b, i, b_panel, a + i, a_row);
    }
    b += kStep * kLanes;
    a += kStep;
  }
#pragma GCC unroll 1
  for (int i = 0; i < k; ++i) add_column<F, M, P>(totals, b, i, b_panel, a + i, a_row);

  store_totals(t, totals);
}

template <Format F>
void unpack(const void* source, int64_t columns, float* out) {
  constexpr int kColumns = kColumnsOfLine<F>;
  const auto* line = static_cast<const typename Elements<F>::Type*>(source);
  for (; columns > 0; columns -= kColumns, line += kColumns * kLanes)
#pragma GCC unroll 32
    for (int i = 0; i < kColumns; ++i, out += kLanes) {
      if (i == columns) break;
#pragma GCC unroll 32
      for (int n = 0; n < kRegisters; ++n) w_store(out + n * L, load_column<F>(line, i, n));
    }
}

// Four columns of four rows.
inline void pack_square(const float* a, int64_t a_row, int64_t rows, float* out) {
#if defined(__AVX2__)
  __m128 r0 = _mm_loadu_ps(a), r1 = _mm_loadu_ps(a + a_row);
  __m128 r2 = _mm_loadu_ps(a + 2 * a_row), r3 = _mm_loadu_ps(a + 3 * a_row);
  _MM_TRANSPOSE4_PS(r0, r1, r2, r3);
  _mm_storeu_ps(out, r0);
  _mm_storeu_ps(out + rows, r1);
  _mm_storeu_ps(out + 2 * rows, r2);
  _mm_storeu_ps(out + 3 * rows, r3);
#else
  for (int i = 0; i < 4; ++i)
    for (int m = 0; m < 4; ++m) out[i * rows + m] = a[m * a_row + i];
#endif
}

inline void pack_rows(const float* a, int64_t a_row, int rows, int64_t k, float* out) {
  const int64_t whole_k = k / 4 * 4;
  int m = 0;
  for (; m + 4 <= rows; m += 4)
    for (int64_t i = 0; i < whole_k; i += 4) pack_square(a + m * a_row + i, a_row, rows, out + i * rows + m);
  for (; m < rows; ++m)
    for (int64_t i = 0; i < whole_k; ++i) out[i * rows + m] = a[m * a_row + i];
  for (int64_t i = whole_k; i < k; ++i)
    for (m = 0; m < rows; ++m) out[i * rows + m] = a[m * a_row + i];
}

template <Format F, int M>
constexpr void fill_rows(KernelTable& table) {
  auto& widths = table.tile[static_cast<int>(F)][M];
  widths[1] = few_tile<F, M, 1>;
  if constexpr (max_width(M) >= 2) widths[2] = few_tile<F, M, 2>;
  if constexpr (max_width(M) >= 3) widths[3] = few_tile<F, M, 3>;
  if constexpr (max_width(M) >= 4) widths[4] = few_tile<F, M, 4>;
  if constexpr (F == Format::float32 && M <= kRowsOfTile) {
    table.packed_tile[M][0] = packed_tile<F, M, 1>;
    table.packed_tile[M][1] = packed_tile<F, M, kPackedWidth>;
  }
  if constexpr (M < kFewRows) fill_rows<F, M + 1>(table);
}

// Tiles of more rows than fit two panels.
template <Format F, int M>
constexpr void fill_streams(KernelTable& table) {
  if constexpr (M <= kStreamRows && L == 16) {
    table.stream_tile[static_cast<int>(F)][M] = packed_tile<F, M, 1>;
    fill_streams<F, M + 1>(table);
  }
}

constexpr void fill_tiles(KernelTable& table) {
  table.tile_rows = kRowsOfTile;
  table.few_rows = kFewRows;
  table.packed_width = kPackedWidth;
  fill_rows<Format::float32, 1>(table);
  fill_rows<Format::bfloat16, 1>(table);
  fill_rows<Format::float16, 1>(table);
  fill_streams<Format::bfloat16, kFewRows>(table);  // the mask of its second columns needs a register, too
  fill_streams<Format::float16, kFewRows + 1>(table);
  table.unpack[0] = unpack<Format::float32>;
  table.unpack[1] = unpack<Format::bfloat16>;
  table.unpack[2] = unpack<Format::float16>;
  table.pack_rows = pack_rows;
}

}  // namespace
}  // namespace mindport
