// The operations every instruction set implements. All implementations perform the same floating-point operations
// in the same order for each output, so that their results are identical bit for bit.
#pragma once

#include "attention_table.h"
#include "format.h"

namespace mindport {

constexpr int kTileRows = 14;    // rows of the largest tile of any instruction set
constexpr int kTilePanels = 4;   // panels of the widest
constexpr int kStreamRows = 24;  // rows of the largest tile of one panel

// C[m, 16 p + lane] (+)= sum over k of A[m, k] * B[p][k][lane], by fused multiply-add in increasing order of k. Columns of
// B lie together as in a Matrix.
struct Tile {
  const float* a;
  int64_t a_row;    // elements between rows of A; a packed A is [k][rows]
  const void* b;
  int64_t b_panel;  // elements between panels of B
  int64_t k;
  float* c;
  int64_t c_row;    // elements between rows of C
  bool resume;      // continue from C rather than from zero
  const void* ahead = nullptr;  // memory to fetch meanwhile, or null: a line for each that a panel has, or that all have
  int64_t ahead_step = 0;       // bytes between those lines
};
using TileFunction = void (*)(const Tile&);

struct KernelTable {
  int tile_rows;      // most rows a tile takes with a packed A
  int few_rows;       // most rows another tile takes
  int packed_width;   // panels of the tile used with a packed A
  TileFunction tile[kFloatFormats][kTileRows + 1][kTilePanels + 1];  // by rows and panels; null where registers run out
  TileFunction packed_tile[kTileRows + 1][2];               // float32 panels, packed A; one panel or packed_width
  TileFunction stream_tile[kFloatFormats][kStreamRows + 1];  // packed A, one panel of 16 bits an element; by rows, or null
  void (*unpack[kFloatFormats])(const void* source, int64_t columns, float* out);  // of a panel, to [columns][16]
  void (*pack_rows)(const float* a, int64_t a_row, int rows, int64_t k, float* out);  // to [k][rows]
  AttentionTable attention;
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
  void (*swiglu)(const float* pairs, int64_t n, float* out);  // silu(gate) * up; 16 of each take turns
  void (*add)(const float* x, const float* y, int64_t n, float* out);
  void (*residual)(const float* x, const float* delta, float scale, int64_t n, float* out);  // x + scale * delta
  void (*scale)(float factor, int64_t n, float* x);
  void (*rotate)(float* head, const float* cos, const float* sin, int64_t half);  // half-split RoPE in place
  void (*exp)(const float* x, int64_t n, float* out);
  void (*silu)(const float* x, int64_t n, float* out);
  bool (*finite)(const float* x, int64_t n);
  int64_t (*largest)(const float* x, int64_t n);  // index of the first
};

// The most panels, at most `panels`, that a tile of these rows takes at once.
inline int64_t widest(const KernelTable& table, Format format, int64_t rows, int64_t panels) {
  int64_t width = panels < kTilePanels ? panels : kTilePanels;
  while (table.tile[static_cast<int>(format)][rows][width] == nullptr) --width;
  return width;
}

extern const KernelTable portable_table;
#if defined(__x86_64__)
extern const KernelTable avx2_table;
extern const KernelTable avx512_table;
#elif defined(__aarch64__)
extern const KernelTable neon_table;
#endif

// The table in use: the best this processor has, until another is selected.
const KernelTable& kernels();
// Selects an instruction set by name; false when the name is unknown or the processor lacks it.
bool select_kernels(const char* name);
// The name of the instruction set in use.
const char* kernels_name();

}  // namespace mindport
