// C = A * W^T over the thread pool.
#pragma once

#include <functional>

#include "matrix.h"

namespace mindport {

// A region of C that has just been completed: rows [row0, row1), panels [panel0, panel1) of 16 columns each.
struct Region {
  int64_t row0, row1, panel0, panel1;
};

// A [m, k] with `a_row` floats between rows; C [m, 16 * panels] with `c_row` floats between rows (padding columns are
// written). `finish` is called on each region by the thread that computed it; a region holds whole groups of `parts`.
void matmul(const Matrix& weights, const float* a, int64_t a_row, int64_t m, float* c, int64_t c_row,
            const std::function<void(const Region&)>& finish = {});

}  // namespace mindport
