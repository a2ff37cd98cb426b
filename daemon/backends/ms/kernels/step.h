// What one step computes: rows of several sequences, where their keys and values live, which rows want logits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <vector>

namespace mindport {

constexpr int64_t kSegmentNumbers = 5;  // that describe a segment

// Consecutive tokens of one sequence.
struct Segment {
  int64_t row;             // its first row in the step
  int64_t count;           // how many rows
  int64_t start;           // position of the first row in the sequence
  const int32_t* blocks;   // KV blocks of the sequence
  int64_t logits_from;     // rows [logits_from, count) want logits
  double rope_base;
  double rope_scale;
  int64_t adapter;         // handle; 0: none
};

struct Limits {
  int64_t max_rows, max_logit_rows, num_blocks, block_size;
};

// Rows of one segment that attention handles together.
struct AttentionTask {
  int64_t segment, first, count;
};

// The angles of a step, [rows][half].
struct Rotary {
  int64_t half;
  std::vector<float> factors, cos, sin;
};

class Step {
 public:
  // Copies and checks a description: per segment {count, start, table length, logits_from, adapter} and {base, scale}, and the
  // block tables one after the other. Throws std::invalid_argument naming the segment.
  void set(int64_t segments, const int64_t* shape, const double* rope, const int32_t* tables, const Limits& limits);

  // The rows that want logits, as a step of their own. It points into this one.
  Step wanted() const;

  int64_t serial = 0;
  int64_t rows = 0;
  std::vector<Segment> segments;
  std::vector<int64_t> logit_rows;

  int64_t segment_of(int64_t row) const { return segment_of_[static_cast<size_t>(row)]; }
  int64_t position(int64_t row) const {
    const Segment& s = segments[static_cast<size_t>(segment_of(row))];
    return s.start + row - s.row;
  }

  // cos and sin of every row for `half` frequencies of a rotary dimension of 2 * half, each divided by its factor
  // where there are factors: computed once a step in double precision.
  const Rotary& rotary(int64_t half, const std::vector<float>& factors);

  // Attention work in pieces of at most `rows_at_once` rows, the longest contexts first.
  const std::vector<AttentionTask>& tasks(int64_t rows_at_once);

 private:
  std::vector<int32_t> tables_;
  std::vector<int32_t> segment_of_;
  std::list<Rotary> rotaries_;
  std::vector<AttentionTask> tasks_;
  int64_t tasks_rows_ = 0;
};

}  // namespace mindport
