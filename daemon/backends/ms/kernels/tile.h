// Matrix tiles whose accumulators stay in registers over the whole of k. Include after vector_math.h.
#pragma once

#include "table.h"

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

constexpr int64_t kAhead = 2048;     // bytes to prefetch ahead in each panel: the hardware alone reaches 80 %
constexpr int kPrefetchedRows = 8;   // with more rows the arithmetic hides the memory

// Where a tile fetches what is wanted next: a line a step, or the same harmless one over and over.
struct Ahead {
  const char* line;
  int64_t step;
  explicit Ahead(const Tile& t)
      : line(static_cast<const char*>(t.ahead != nullptr ? t.ahead : t.a)),
        step(t.ahead != nullptr ? t.ahead_step : 0) {}
  void fetch() {
    __builtin_prefetch(line, 0, 2);
    line += step;
  }
};

template <Format F, int M, int P, bool Packed>
void tile(const Tile& t) {
  constexpr int N = kRegisters;
  using E = typename Elements<F>::Type;
  W acc[M][P][N];
#pragma GCC unroll 32
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 32
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 32
      for (int n = 0; n < N; ++n)
        acc[m][p][n] = t.resume ? w_load(t.c + m * t.c_row + p * 16 + n * L) : w_set1(0.0f);

  const E* b = static_cast<const E*>(t.b);
  const float* a = t.a;
  const int64_t b_panel = t.b_panel, a_row = t.a_row;
  Ahead ahead(t);
  for (int64_t k = t.k; k > 0; --k) {
    W bv[P][N];
#pragma GCC unroll 32
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 32
      for (int n = 0; n < N; ++n) bv[p][n] = Elements<F>::load(b + p * b_panel + n * L);
    if constexpr (!Packed && M <= kPrefetchedRows) {
#pragma GCC unroll 32
      for (int p = 0; p < P; ++p) __builtin_prefetch(b + p * b_panel + kAhead / static_cast<int64_t>(sizeof(E)));
    }
    if constexpr (Packed) ahead.fetch();
#pragma GCC unroll 32
    for (int m = 0; m < M; ++m) {
      const W av = w_set1(Packed ? a[m] : a[m * a_row]);
#pragma GCC unroll 32
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 32
        for (int n = 0; n < N; ++n) acc[m][p][n] = w_fma(av, bv[p][n], acc[m][p][n]);
    }
    b += 16;
    a += Packed ? M : 1;
  }

#pragma GCC unroll 32
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 32
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 32
      for (int n = 0; n < N; ++n) w_store(t.c + m * t.c_row + p * 16 + n * L, acc[m][p][n]);
}

template <Format F>
void unpack(const void* source, int64_t groups, float* out) {
  const auto* p = static_cast<const typename Elements<F>::Type*>(source);
  for (int64_t i = 0; i < groups * 16; i += L) w_store(out + i, Elements<F>::load(p + i));
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

constexpr int kRowsOfStream = L == 16 ? 24 : kRowsOfTile;  // most rows of a tile of one panel

template <Format F, int M, int P>
constexpr TileFunction tile_if_fits() {
  if constexpr (M <= kRowsOfTile && P <= max_width(M)) return tile<F, M, P, false>;
  return nullptr;
}

template <Format F, int M>
constexpr void fill_rows(KernelTable& table) {
  auto& widths = table.tile[static_cast<int>(F)][M];
  widths[0] = tile_if_fits<F, M, 1>();
  widths[1] = tile_if_fits<F, M, 2>();
  widths[2] = tile_if_fits<F, M, 4>();
  if constexpr (F == Format::float32 && M <= kRowsOfTile) {
    table.packed_tile[M][0] = tile<F, M, 1, true>;
    table.packed_tile[M][1] = tile<F, M, kPackedWidth, true>;
  }
  if constexpr (M < kTileRows) fill_rows<F, M + 1>(table);
}

// Tiles of more rows than fit two panels.
template <Format F, int M>
constexpr void fill_streams(KernelTable& table) {
  if constexpr (M <= kRowsOfStream) {
    table.stream_tile[static_cast<int>(F)][M - kTileRows] = tile<F, M, 1, true>;
    fill_streams<F, M + 1>(table);
  }
}

constexpr void fill_tiles(KernelTable& table) {
  table.tile_rows = kRowsOfTile;
  table.stream_rows = kRowsOfStream;
  table.packed_width = kPackedWidth;
  fill_rows<Format::float32, 1>(table);
  fill_rows<Format::bfloat16, 1>(table);
  fill_rows<Format::float16, 1>(table);
  fill_streams<Format::float32, kTileRows + 1>(table);
  fill_streams<Format::bfloat16, kTileRows + 1>(table);
  fill_streams<Format::float16, kTileRows + 1>(table);
  table.unpack[0] = unpack<Format::float32>;
  table.unpack[1] = unpack<Format::bfloat16>;
  table.unpack[2] = unpack<Format::float16>;
  table.pack_rows = pack_rows;
}

}  // namespace
}  // namespace mindport
