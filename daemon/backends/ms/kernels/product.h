// C = A * W^T as its ways of computing see it.
#pragma once

#include "matmul.h"
#include "table.h"

namespace mindport {

// Where the regions of a product lie: in C, or in scratch of the workers.
class Output {
 public:
  Output(float* c, int64_t c_row);
  Region region(int64_t row0, int64_t row1, int64_t panel0, int64_t panel1, int worker) const;

 private:
  float* c_;
  int64_t c_row_;
};

// Of float formats.
struct Product {
  const Matrix& weights;
  const float* a;
  int64_t a_row, m;
  const Output& output;
  const std::function<void(const Region&)>& finish;
  const KernelTable& table;
};

// Room for a packed A.
float* packing_room(size_t count);

// Few rows: weights stream through once.
void multiply_few(const Product& product);

}  // namespace mindport
