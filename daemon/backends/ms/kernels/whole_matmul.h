// C = A * W^T for weights that are whole numbers.
#pragma once

#include "product.h"

namespace mindport {

// As matmul().
void whole_matmul(const Matrix& weights, const float* a, int64_t a_row, int64_t m, const Output& output,
                  const std::function<void(const Region&)>& finish);

}  // namespace mindport
