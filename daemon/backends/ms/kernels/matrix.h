// A weight matrix [rows, cols] packed for the kernels in panels of 16 rows.
//
// Float formats: a panel is [cols][16]; in bfloat16 [cols / 2][16][2], columns padded to be even. Whole numbers: columns
// are padded to `depth`, a multiple of 32, and a panel is [depth / 4][16][4] unsigned bytes (int8, 128 added) or
// [depth / 8][16][4] bytes whose low nibbles are four columns and whose high nibbles are the next four (int4, 8 added),
// followed by the scales [groups][16].
#pragma once

#include <cstdint>

#include "format.h"
#include "memory.h"

namespace mindport {

// Of the layout above and of how values are rounded into it: packed matrices outlive the process in files. Whoever
// changes either must raise it.
constexpr int64_t kPackingVersion = 2;

// Consecutive columns of a row that share a scale.
struct Grouping {
  int64_t size;
  Format scales;
};

// Rows of floats, `stride` elements apart.
struct FloatRows {
  const void* first;
  Format format;
  int64_t count, cols, stride;
};

// Makes them lanes of a panel of a float format, from `lane` on. Returns how many elements are infinite or NaN there.
int64_t pack_floats(const FloatRows& rows, int64_t lane, void* panel, Format format);

class Matrix {
 public:
  // `parts` matrices of the same shape share the storage with their panels taking turns (gate and up of a
  // feed-forward), so that one pass computes the same columns of each. `grouping` is for whole numbers.
  Matrix(int64_t rows, int64_t cols, int64_t parts, Format format, Grouping grouping = {0, Format::float32});

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t parts() const { return parts_; }
  int64_t panels() const { return panels_; }
  Format format() const { return format_; }
  int64_t bytes() const { return static_cast<int64_t>(memory_.size()); }

  // Its panels become a part of a file that holds those of a matrix of the same shape and format: nothing can be packed
  // afterwards. `offset` is a multiple of the page size.
  void map(int descriptor, int64_t offset);
  const void* data() const { return memory_.bytes(); }

  const void* panel(int64_t index) const { return memory_.bytes() + index * panel_bytes_; }
  int64_t panel_bytes() const { return panel_bytes_; }
  int64_t panel_elements() const { return mindport::panel_elements(cols_, format_); }  // of float formats

  // Of whole numbers.
  const Grouping& grouping() const { return grouping_; }
  int64_t depth() const { return round_up(cols_, kBlock); }
  int64_t groups() const { return (cols_ + grouping_.size - 1) / grouping_.size; }
  int64_t scales_at() const { return depth() * kLanes / (format_ == Format::int4 ? 2 : 1); }  // in a panel

  // Packs `count` rows of `part`, beginning at row `first`, from a row-major source of floats, rounding to whole
  // numbers where the matrix holds such. Returns how many of their elements are infinite or NaN (in the source, or
  // after conversion). Calls for different rows may run in parallel.
  int64_t pack(int64_t part, int64_t first, int64_t count, const void* source, Format format);

  // The same for rows that are whole numbers already: offset by half their range, lowest bits first in words of 32
  // bits, rows beginning at a word.
  void pack_whole(int64_t part, int64_t first, int64_t count, const void* source);

  // The same for their scales [count][groups]. Returns how many are infinite or NaN.
  int64_t pack_scales(int64_t part, int64_t first, int64_t count, const void* source, Format format);

  void copy_row(int64_t row, float* out) const;

 private:
  template <class Body>
  void each_panel(int64_t part, int64_t first, int64_t count, const Body& body);
  void put_scale(uint8_t* panel, int64_t group, int64_t lane, float scale) const;
  float scale(const uint8_t* panel, int64_t group, int64_t lane) const;
  int64_t round_rows(uint8_t* panel, int64_t lane, int64_t rows, const uint8_t* source, Format format) const;

  int64_t rows_, cols_, parts_, panels_, panel_bytes_ = 0;
  Format format_;
  Grouping grouping_;
  Memory memory_;
  bool mapped_ = false;
};

}  // namespace mindport
