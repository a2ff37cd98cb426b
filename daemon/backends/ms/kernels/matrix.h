// A weight matrix [rows, cols] packed for the kernels: panels of 16 rows, each [cols][16].
#pragma once

#include <cstdint>

#include "format.h"
#include "memory.h"

namespace mindport {

class Matrix {
 public:
  // `parts` matrices of the same shape share the storage with their panels taking turns (gate and up of a
  // feed-forward), so that one pass computes the same columns of each.
  Matrix(int64_t rows, int64_t cols, int64_t parts, Format format);

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t parts() const { return parts_; }
  int64_t panels() const { return panels_; }
  Format format() const { return format_; }
  int64_t bytes() const { return static_cast<int64_t>(memory_.size()); }

  const void* panel(int64_t index) const { return memory_.bytes() + index * panel_elements() * element_bytes(format_); }
  int64_t panel_elements() const { return cols_ * kLanes; }

  // Packs `count` rows of `part`, beginning at row `first`, from a row-major source. Returns how many of their
  // elements are infinite or NaN (in the source, or after conversion). Calls for different rows may run in parallel.
  int64_t pack(int64_t part, int64_t first, int64_t count, const void* source, Format format);

  void copy_row(int64_t row, float* out) const;

 private:
  int64_t rows_, cols_, parts_, panels_;
  Format format_;
  Memory memory_;
};

}  // namespace mindport
