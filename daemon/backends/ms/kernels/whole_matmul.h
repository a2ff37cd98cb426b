// C = A * W^T for weights that are whole numbers.
#pragma once

#include "matmul.h"

namespace mindport {

// As matmul().
void whole_matmul(const Matrix& weights, const float* a, int64_t a_row, int64_t m, float* c, int64_t c_row,
                  const std::function<void(const Region&)>& finish);

}  // namespace mindport
