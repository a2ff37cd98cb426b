// Adapters: low-rank changes of a model's matrices. Each sequence of a step uses one adapter or none.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "matmul.h"
#include "step.h"

namespace mindport {

// y += U (scales * (D x)) for one matrix. Its panels use only the columns of U that are not zero in them.
struct LowRank {
  struct Span {
    int64_t first, count;  // columns of U: rows of D
    int64_t offset;        // of the panel [count][16] in `up`, in elements
  };

  std::shared_ptr<Matrix> down;  // D, of a float format
  std::vector<float> scales;     // one for each row of D
  std::vector<Span> spans;       // one for each panel of the matrix
  Memory up;
  Format format;                 // of `up`

  int64_t bytes() const { return down->bytes() + static_cast<int64_t>(up.size()); }
};

struct Adapter {
  std::map<const Matrix*, LowRank> changes;

  const LowRank* of(const Matrix& matrix) const {
    const auto found = changes.find(&matrix);
    return found == changes.end() ? nullptr : &found->second;
  }
};

// Consecutive rows that use the same adapter.
struct AdapterRun {
  int64_t first, last;
  const Adapter* adapter;
};

// What adapters add to one product a W^T of a step.
class Correction {
 public:
  // Computes D x of all rows that `runs` name; `reduced` keeps it until the last `add`.
  Correction(const std::vector<AdapterRun>& runs, const Matrix& weights, const float* a, int64_t a_row, Memory& reduced);

  // Adds to a completed region of c.
  void add(const Region& region, float* c, int64_t c_row) const;

 private:
  struct Run {
    int64_t first, last;
    const LowRank* change;
  };

  std::vector<Run> runs_;
  float* reduced_ = nullptr;
  int64_t stride_ = 0;
};

}  // namespace mindport
