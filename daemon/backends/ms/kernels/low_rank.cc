#include "low_rank.h"

#include <algorithm>
#include <stdexcept>

#include "table.h"
#include "threadpool.h"

namespace mindport {
namespace {

constexpr int64_t kBeginning = 2048;  // bytes of a panel

}  // namespace

void LowRank::add_span(int64_t first, int64_t count) {
  if (first < 0 || count < 0 || first + count > static_cast<int64_t>(scales.size()))
    throw std::out_of_range("a span of a low-rank change lies outside of it");
  spans.push_back({first, count, up_elements});
  up_elements += panel_elements(count, format);
}

void LowRank::pack_up(const void* rows, Arena& arena) {
  uint8_t* packed = arena.room(static_cast<size_t>(up_bytes()));
  const int64_t element = element_bytes(format), stride = static_cast<int64_t>(scales.size());
  const auto* panel = static_cast<const uint8_t*>(rows);
  for (const Span& span : spans) {
    pack_floats({panel + span.first * element, format, kLanes, span.count, stride}, 0, packed + span.offset * element, format);
    panel += kLanes * stride * element;
  }
  up = packed;
}

Correction::Correction(const std::vector<AdapterRun>& runs, const Matrix& weights, const float* a, int64_t a_row,
                       Memory& reduced) {
  int64_t rows = 0;
  for (const AdapterRun& run : runs) {
    const LowRank* change = run.adapter->of(weights);
    if (change == nullptr) continue;
    runs_.push_back({run.first, run.last, change});
    stride_ = std::max(stride_, change->panels * kLanes);
    rows = std::max(rows, run.last);
  }
  if (runs_.empty()) return;
  reduced_ = reduced.at_least(static_cast<size_t>(rows * stride_));

  const std::vector<Task> tasks = cut(rows);
  ThreadPool::instance().each(static_cast<int64_t>(tasks.size()), 1, [&](int64_t first, int64_t last, int) {
    for (int64_t i = first; i < last; ++i) {
      const size_t next = static_cast<size_t>(i) + 1;
      if (next < tasks.size()) fetch_beginning(tasks[next]);
      reduce(tasks[static_cast<size_t>(i)], a, a_row);
    }
  });
}

// Rows of a run by panels of its D, so that there is work for every thread.
std::vector<Correction::Task> Correction::cut(int64_t rows) const {
  const int64_t most = kernels().few_rows;
  std::vector<Task> tasks;
  tasks.reserve(static_cast<size_t>(2 * rows));
  for (const Run& run : runs_) {
    for (int64_t row = run.first; row < run.last; row += most) {
      const int64_t count = std::min(most, run.last - row);
      for (int64_t panel = 0, width; panel < run.change->panels; panel += width) {
        width = widest(kernels(), run.change->down_format, count, run.change->panels - panel);
        tasks.push_back({run.change, row, count, panel, width});
      }
    }
  }
  return tasks;
}

void Correction::reduce(const Task& task, const float* a, int64_t a_row) const {
  const LowRank& change = *task.change;
  kernels().tile[static_cast<int>(change.down_format)][task.count][task.width](
      {a + task.row * a_row, a_row, change.panel(task.panel), panel_elements(change.cols, change.down_format), change.cols,
       reduced_ + task.row * stride_ + task.panel * kLanes, stride_, false});
  const int64_t last = std::min((task.panel + task.width) * kLanes, static_cast<int64_t>(change.scales.size()));
  for (int64_t r = task.row; r < task.row + task.count; ++r)
    for (int64_t j = task.panel * kLanes; j < last; ++j) reduced_[r * stride_ + j] *= change.scales[static_cast<size_t>(j)];
}

// What a tile reads before its own fetching takes effect.
void Correction::fetch_beginning(const Task& task) const {
  for (int64_t panel = task.panel; panel < task.panel + task.width; ++panel)
    for (int64_t at = 0; at < std::min(kBeginning, task.change->panel_bytes()); at += kLine)
      __builtin_prefetch(task.change->panel(panel) + at);
}

void Correction::add(const Region& region) const {
  const int64_t most = kernels().few_rows;
  for (const Run& run : runs_) {
    const int64_t first = std::max(run.first, region.row0), last = std::min(run.last, region.row1);
    if (first >= last) continue;
    const LowRank& change = *run.change;
    const int format = static_cast<int>(change.format);
    const int64_t element = element_bytes(change.format);
    for (int64_t panel = region.panel0; panel < region.panel1;) {
      const LowRank::Span& span = change.spans[static_cast<size_t>(panel)];
      const int64_t elements = panel_elements(span.count, change.format);
      // Neighbours that use the same columns can be one tile.
      int64_t alike = 1;
      while (alike < 4 && panel + alike < region.panel1) {
        const LowRank::Span& next = change.spans[static_cast<size_t>(panel + alike)];
        if (next.first != span.first || next.count != span.count) break;
        ++alike;
      }
      int64_t width = alike;
      for (int64_t row = first; row < last && span.count > 0; row += most) {
        const int64_t count = std::min(most, last - row);
        width = std::min(width, widest(kernels(), change.format, count, alike));
      }
      for (int64_t row = first; row < last && span.count > 0; row += most) {
        const int64_t count = std::min(most, last - row);
        kernels().tile[format][count][width]({reduced_ + row * stride_ + span.first, stride_,
                                              change.up + span.offset * element, elements, span.count,
                                              region.at(row, panel), region.c_row, true});
      }
      panel += width;
    }
  }
}

}  // namespace mindport
