#include "step.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace mindport {
namespace {

[[noreturn]] void refuse(int64_t segment, const std::string& why) {
  throw std::invalid_argument("segment " + std::to_string(segment) + ": " + why);
}

void check(int64_t index, const Segment& s, int64_t table, const Limits& limits) {
  if (s.count <= 0) refuse(index, "has no tokens");
  if (s.start < 0) refuse(index, "starts at a negative position");
  if (s.logits_from < 0 || s.logits_from > s.count) refuse(index, "logits_from lies outside the segment");
  if (s.start + s.count > table * limits.block_size)
    refuse(index, "needs " + std::to_string(s.start + s.count) + " positions, its block table holds " +
                      std::to_string(table * limits.block_size));
  for (int64_t i = 0; i < table; ++i)
    if (s.blocks[i] < 0 || s.blocks[i] >= limits.num_blocks)
      refuse(index, "names KV block " + std::to_string(s.blocks[i]) + " of " + std::to_string(limits.num_blocks));
  if (!(s.rope_base > 0.0) || !std::isfinite(s.rope_base) || !std::isfinite(s.rope_scale))
    refuse(index, "has a rotary base or scale that is not a positive number");
}

}  // namespace

void Step::set(int64_t count, const int64_t* shape, const double* rope, const int32_t* tables, const Limits& limits) {
  rows = 0;
  segments.clear();
  logit_rows.clear();
  segment_of_.clear();
  rotaries_.clear();
  tasks_rows_ = 0;
  int64_t entries = 0;
  for (int64_t i = 0; i < count; ++i) entries += std::max<int64_t>(0, shape[kSegmentNumbers * i + 2]);
  tables_.assign(tables, tables + entries);
  const int32_t* table = tables_.data();
  for (int64_t i = 0; i < count; ++i) {
    const int64_t* s = shape + kSegmentNumbers * i;
    segments.push_back({rows, s[0], s[1], table, s[3], rope[2 * i], rope[2 * i + 1], s[4]});
    check(i, segments.back(), s[2], limits);
    rows += s[0];
    table += s[2];
    if (rows > limits.max_rows)
      refuse(i, "brings the step above " + std::to_string(limits.max_rows) + " rows");
    segment_of_.resize(static_cast<size_t>(rows), static_cast<int32_t>(i));
    for (int64_t r = s[3]; r < s[0]; ++r) logit_rows.push_back(segments.back().row + r);
    if (static_cast<int64_t>(logit_rows.size()) > limits.max_logit_rows)
      refuse(i, "brings the step above " + std::to_string(limits.max_logit_rows) + " rows of logits");
  }
}

Step Step::wanted() const {
  Step part;
  for (const Segment& s : segments) {
    if (s.logits_from == s.count) continue;
    Segment last = s;
    last.row = part.rows;
    last.start += s.logits_from;
    last.count -= s.logits_from;
    last.logits_from = 0;
    part.rows += last.count;
    part.segment_of_.resize(static_cast<size_t>(part.rows), static_cast<int32_t>(part.segments.size()));
    part.segments.push_back(last);
  }
  for (int64_t row = 0; row < part.rows; ++row) part.logit_rows.push_back(row);
  return part;
}

const Rotary& Step::rotary(int64_t half, const std::vector<float>& factors) {
  for (const Rotary& known : rotaries_)
    if (known.half == half && known.factors == factors) return known;
  rotaries_.push_back({half, factors, {}, {}});
  Rotary& made = rotaries_.back();
  made.cos.resize(static_cast<size_t>(rows * half));
  made.sin.resize(made.cos.size());
  std::vector<double> frequency(static_cast<size_t>(half));
  double base = 0.0;
  for (const Segment& s : segments) {
    if (s.rope_base != base) {
      base = s.rope_base;
      for (size_t j = 0; j < frequency.size(); ++j)
        frequency[j] = std::pow(base, -static_cast<double>(j) / static_cast<double>(half)) /
                       (factors.empty() ? 1.0 : static_cast<double>(factors[j]));
    }
    for (int64_t r = 0; r < s.count; ++r) {
      const size_t first = static_cast<size_t>((s.row + r) * half);
      for (size_t j = 0; j < frequency.size(); ++j) {
        const double angle = static_cast<double>(s.start + r) * frequency[j];
        made.cos[first + j] = static_cast<float>(std::cos(angle) * s.rope_scale);
        made.sin[first + j] = static_cast<float>(std::sin(angle) * s.rope_scale);
      }
    }
  }
  return made;
}

const std::vector<AttentionTask>& Step::tasks(int64_t rows_at_once) {
  if (tasks_rows_ == rows_at_once) return tasks_;
  tasks_.clear();
  for (size_t i = 0; i < segments.size(); ++i)
    for (int64_t first = 0; first < segments[i].count; first += rows_at_once)
      tasks_.push_back({static_cast<int64_t>(i), first, std::min(rows_at_once, segments[i].count - first)});
  const auto context = [&](const AttentionTask& t) {
    return segments[static_cast<size_t>(t.segment)].start + t.first + t.count;
  };
  std::stable_sort(tasks_.begin(), tasks_.end(),
                   [&](const AttentionTask& x, const AttentionTask& y) { return context(x) > context(y); });
  tasks_rows_ = rows_at_once;
  return tasks_;
}

}  // namespace mindport
