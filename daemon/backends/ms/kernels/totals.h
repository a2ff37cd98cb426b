// What tiles of float and of whole weights share: sums in registers, and fetching. Include after vector_math.h.
#pragma once

#include <cstdint>

namespace mindport {
namespace {

// Where a tile fetches what is wanted next: a line a step, or the same harmless one over and over.
struct Fetch {
  const char* line;
  int64_t step;
  template <class Tile>
  Fetch(const Tile& t, const void* harmless)
      : line(static_cast<const char*>(t.ahead != nullptr ? t.ahead : harmless)),
        step(t.ahead != nullptr ? t.ahead_step : 0) {}
  void next() {
    __builtin_prefetch(line, 0, 2);
    line += step;
  }
};

template <int M, int P>
struct Totals {
  W c[M][P][kRegisters];
};

template <int M, int P, class Tile>
__attribute__((always_inline)) inline void load_totals(const Tile& t, Totals<M, P>& totals) {
#pragma GCC unroll 32
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 32
    for (int i = 0; i < P * kRegisters; ++i)
      (&totals.c[m][0][0])[i] = t.resume ? w_load(t.c + m * t.c_row + i * L) : w_set1(0.0f);
}

template <int M, int P, class Tile>
__attribute__((always_inline)) inline void store_totals(const Tile& t, const Totals<M, P>& totals) {
#pragma GCC unroll 32
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 32
    for (int i = 0; i < P * kRegisters; ++i) w_store(t.c + m * t.c_row + i * L, (&totals.c[m][0][0])[i]);
}

}  // namespace
}  // namespace mindport
