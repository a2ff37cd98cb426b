// Products of whole numbers: weights of 8 or 4 bits times activations rounded to 8 bits, a scale for each group of
// columns on both sides. Sums within a group are exact integers; groups are joined in float32 in increasing order by
// fused multiply-add. Results are therefore identical on every instruction set.
#pragma once

#include "format.h"

namespace mindport {

constexpr int kWholeRows = 12;   // rows of the largest tile of any instruction set
constexpr int kWholeWidths = 3;  // tiles of 1, 2 and 4 panels

// Where products with weights of 4 bits are summed in 16 bits: blocks of a group that are summed there, of which every
// lane has half the columns. With the offset, 32 * 8 * 127 fits; sums on the way there may pass 2^15 and come back.
constexpr int64_t kNarrowBlocks = 2;
inline int64_t narrow_parts(int64_t group_blocks) { return (group_blocks + kNarrowBlocks - 1) / kNarrowBlocks; }

// The activations of the rows of one tile: for each four columns one 32-bit word a row, the rows side by side; for
// each group and row the scale, and the sum of its values times minus half the range of the weights. Where sums are
// narrow it is two sums of 16 bits, of the first and of the last two columns of words, for each kNarrowBlocks of a group.
struct WholeRows {
  int32_t* words;    // [depth / 4][rows]
  float* scales;     // [groups][rows]
  int32_t* offsets;  // [groups or their parts][rows]
};

// How activations are rounded: the rows of a tile, by groups of so many columns whose largest magnitude goes to `most`,
// for weights of -half_range and more.
struct Rounding {
  int64_t rows, group;
  int half_range, most;
  bool narrow;  // offsets of 16 bits
};

// C[row, 16 p + lane] (+)= the product over whole groups of columns.
struct WholeTile {
  WholeRows a;
  const uint8_t* b;
  const uint8_t* scales;
  Format scale_format;
  int64_t b_panel;       // bytes between panels
  int64_t scale_panel;   // bytes between the scales of panels
  int64_t blocks;        // of 32 columns, beginning at a group
  int64_t group_blocks;  // blocks of a group; the last group may have fewer
  float* c;
  int64_t c_row;
  bool resume;           // continue from C rather than from zero
  const void* ahead = nullptr;  // memory to fetch meanwhile, of each panel; many rows: lines of one, or null
  int64_t ahead_step = 0;       // bytes between those lines
};
using WholeFunction = void (*)(const WholeTile&);

// For many rows: weights, and words of activations, are first brought into another form.
struct WholeMany {
  int tile_rows, width;     // most rows and panels a tile takes; 0 rows: there is no such form
  int64_t block_bytes;      // of 32 columns of a panel
  int64_t block_words;      // of 32 columns of a row
  int64_t fetch_words;      // a tile fetches a line each so many words of a row
  void (*weights)(const uint8_t* b, int64_t blocks, uint8_t* out);                     // null: they stay as they are
  void (*rows)(const int32_t* words, int64_t count, int64_t rows, int32_t* out);       // null: they stay as they are
  WholeFunction tile[kWholeRows + 1][2];  // by rows; one panel, or `width`
};

struct WholeTable {
  int tile_rows;                                             // most rows a tile takes
  bool narrow_sums;                                          // of products with weights of 4 bits
  WholeFunction tile[2][kWholeRows + 1][kWholeWidths];       // 8 and 4 bits; by rows and log2 of panels; null: too wide
  // Rounds `n` columns of rows that lie `x_row` floats apart to whole numbers. Infinite or NaN values make the scale of
  // their group NaN.
  void (*round)(const float* x, int64_t x_row, int64_t n, const Rounding& how, const WholeRows& out);
  WholeMany many[2];                                         // 8 and 4 bits
};

// Null where the compiler does not know the instructions.
const WholeTable* whole_portable();
const WholeTable* whole_avx2();
const WholeTable* whole_avx2_7bit();
const WholeTable* whole_avxvnni();
const WholeTable* whole_avx512vnni();
const WholeTable* whole_neon();
const WholeTable* whole_dotprod();
const WholeTable* whole_i8mm();

// Activations that meet weights of 8 bits are rounded to 8 bits, or to 7: AVX2, which multiplies bytes in pairs, needs
// fewer operations for those. 8 until selected otherwise; the same for all products of the process.
void select_activation_bits(int bits);
int activation_bits();
int quickest_activation_bits();
// What the largest magnitude of a group of activations goes to.
constexpr int kLargest8Bit = 127, kLargest7Bit = 64;

// The table in use; chosen together with the one of floats, and by the bits of activations.
const WholeTable& whole_kernels();

}  // namespace mindport
