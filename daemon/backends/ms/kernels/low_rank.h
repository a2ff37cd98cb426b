// Adapters: low-rank changes of a model's matrices. Each sequence of a step uses one adapter or none.
#pragma once

#include <map>
#include <vector>

#include "matmul.h"
#include "step.h"

namespace mindport {

// y += U (scales * (D x)) for one matrix. Its panels use only the columns of U that are not zero in them.
struct LowRank {
  struct Span {
    int64_t first, count;  // columns of U: rows of D
    int64_t offset;        // of the panel in `up`, in elements
  };

  const uint8_t* down;        // D in panels of a float format
  int64_t panels, cols;       // of D
  Format down_format;
  std::vector<float> scales;  // one for each row of D
  std::vector<Span> spans;    // one for each panel of the matrix
  const uint8_t* up;
  Format format;              // of `up`

  int64_t up_elements = 0;    // of the spans that were added

  // Of the next panel of the matrix.
  void add_span(int64_t first, int64_t count);
  int64_t up_bytes() const { return up_elements * element_bytes(format); }
  // Of each panel [16][rows of D]. What it is packed into belongs to the arena.
  void pack_up(const void* rows, Arena& arena);

  int64_t panel_bytes() const { return panel_elements(cols, down_format) * element_bytes(down_format); }
  const uint8_t* panel(int64_t index) const { return down + index * panel_bytes(); }
};

struct Adapter {
  Arena halves;
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

  // Adds to a completed region.
  void add(const Region& region) const;

 private:
  struct Run {
    int64_t first, last;
    const LowRank* change;
  };
  struct Task {
    const LowRank* change;
    int64_t row, count, panel, width;
  };

  std::vector<Task> cut(int64_t rows) const;
  void reduce(const Task& task, const float* a, int64_t a_row) const;
  void fetch_beginning(const Task& task) const;

  std::vector<Run> runs_;
  float* reduced_ = nullptr;
  int64_t stride_ = 0;
};

}  // namespace mindport
