// Rows of activations, divided into tiles whose sizes differ by one at most.
#pragma once

#include <algorithm>
#include <cstdint>

namespace mindport {

class RowTiles {
 public:
  RowTiles(int64_t rows, int64_t most) : count_((rows + most - 1) / most), least_(rows / count_), larger_(rows % count_) {}

  int64_t count() const { return count_; }
  int64_t largest() const { return rows(0); }
  int64_t first(int64_t tile) const { return tile * least_ + std::min(tile, larger_); }
  int64_t rows(int64_t tile) const { return least_ + (tile < larger_ ? 1 : 0); }

 private:
  int64_t count_, least_, larger_;  // so many tiles have a row more than the least
};

}  // namespace mindport
