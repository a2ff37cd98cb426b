// C = A * W^T over the thread pool.
#pragma once

#include <functional>

#include "matrix.h"

namespace mindport {

// A region of C: rows [row0, row1), panels [panel0, panel1) of 16 columns each, and where it lies.
struct Region {
  int64_t row0, row1, panel0, panel1;
  float* c;
  int64_t c_row;

  float* at(int64_t row, int64_t panel) const { return c + (row - row0) * c_row + (panel - panel0) * kLanes; }
  float* row(int64_t index) const { return at(index, panel0); }
};

// A [m, k] with `a_row` floats between rows; C [m, 16 * panels] with `c_row` floats between rows (padding columns are
// written). `finish` is called on each completed region by the thread that computed it; a region holds whole groups of
// `parts`. Without C, a region lasts no longer than that call.
void matmul(const Matrix& weights, const float* a, int64_t a_row, int64_t m, float* c, int64_t c_row,
            const std::function<void(const Region&)>& finish = {});

}  // namespace mindport
