#include "whole_matmul.h"

#include <algorithm>

#include "threadpool.h"
#include "whole_table.h"

namespace mindport {
namespace {

constexpr int64_t kDepthBlocks = 16;  // blocks of 32 columns per pass over several tiles of rows: two panels of them
                                      // stay in the first-level cache
constexpr int64_t kRowsAtOnce = 240;  // rows per task, so that their columns of a pass stay in the second-level cache
constexpr int64_t kPanelsAtOnce = 8;  // panels per task of the blocked product
constexpr int64_t kDirectTiles = 3;   // tiles of rows up to which weights stream through once
constexpr int64_t kWorthForking = 256 << 10;  // bytes of weights that one thread reads as fast as two that must meet
constexpr int64_t kRoundingCost = 8;  // of an activation, in multiply-adds of whole numbers

int log2_of(int64_t width) { return width == 4 ? 2 : width == 2 ? 1 : 0; }

class WholeProduct {
 public:
  WholeProduct(const Matrix& weights, int64_t m, float* c, int64_t c_row,
               const std::function<void(const Region&)>& finish)
      : weights_(weights), m_(m), c_(c), c_row_(c_row), finish_(finish), table_(whole_kernels()),
        tiles_((m + table_.tile_rows - 1) / table_.tile_rows), blocks_(weights.depth() / kBlock),
        group_blocks_(weights.grouping().size / kBlock) {
    static Memory rounded;
    rounded_ = reinterpret_cast<int32_t*>(rounded.at_least(static_cast<size_t>(m * row_words())));
  }

  void run(const float* a, int64_t a_row) {
    round(a, a_row);
    if (tiles_ > kDirectTiles) blocked();
    else direct();
  }

 private:
  int64_t first_row(int64_t tile) const { return m_ * tile / tiles_; }  // rows of tiles differ by one at most
  int64_t rows_of(int64_t tile) const { return first_row(tile + 1) - first_row(tile); }
  int64_t row_words() const { return weights_.depth() / 4 + 2 * weights_.groups(); }

  WholeRows rows(int64_t tile) const {
    int32_t* words = rounded_ + first_row(tile) * row_words();
    int32_t* scales = words + weights_.depth() / 4 * rows_of(tile);
    return {words, reinterpret_cast<float*>(scales), scales + weights_.groups() * rows_of(tile)};
  }

  void round(const float* a, int64_t a_row) const {
    const int half_range = weights_.format() == Format::int8 ? 128 : 8;
    const int64_t cost = weights_.cols() * (m_ / tiles_) * kRoundingCost;
    ThreadPool::instance().each(tiles_, std::max<int64_t>(1, kWorthAThread / cost), [&](int64_t t, int64_t last, int) {
      for (; t < last; ++t) {
        const WholeRows to = rows(t);
        for (int64_t r = 0; r < rows_of(t); ++r)
          table_.round_row(a + (first_row(t) + r) * a_row, weights_.cols(), weights_.grouping().size, half_range,
                           rows_of(t), {to.words + r, to.scales + r, to.offsets + r});
      }
    });
  }

  // The most panels every tile can take at once.
  int64_t widest(int64_t panels) const {
    const auto& functions = tile_functions((m_ + tiles_ - 1) / tiles_);
    int64_t width = 1;
    while (width < 4 && 2 * width <= panels && functions[log2_of(2 * width)] != nullptr) width *= 2;
    return width;
  }

  const WholeFunction (&tile_functions(int64_t rows) const)[kWholeWidths] {
    return table_.tile[weights_.format() == Format::int8 ? 0 : 1][rows];
  }

  // Few rows: weights stream through once; a further tile of rows finds them in the cache.
  void direct() const {
    const int64_t panels = weights_.panels(), work = weights_.panel_bytes() * panels * std::max<int64_t>(1, m_ / 4);
    const int64_t grain = work < kWorthForking ? panels : round_up(widest(panels), weights_.parts());
    ThreadPool::instance().each(panels, grain, [&](int64_t first, int64_t last, int) {
      task(0, tiles_, first, last);
    });
  }

  // Many rows: a block of columns at a time, so that weights and activations stay in the caches.
  void blocked() const {
    const int64_t groups = (m_ + kRowsAtOnce - 1) / kRowsAtOnce, per_column = round_up(kPanelsAtOnce, weights_.parts());
    const int64_t columns = (weights_.panels() + per_column - 1) / per_column;
    ThreadPool::instance().each(groups * columns, 1, [&](int64_t first, int64_t last, int) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t group = i / columns, column = i % columns;
        task(tiles_ * group / groups, tiles_ * (group + 1) / groups, column * per_column,
             std::min(weights_.panels(), (column + 1) * per_column));
      }
    });
  }

  void task(int64_t tile0, int64_t tile1, int64_t panel0, int64_t panel1) const {
    const int64_t depth = tiles_ == 1 ? blocks_ : round_up(kDepthBlocks, group_blocks_);
    for (int64_t block = 0; block < blocks_; block += depth) {
      const int64_t count = std::min(depth, blocks_ - block);
      for (int64_t panel = panel0; panel < panel1;) {
        const int64_t width = widest(panel1 - panel);
        for (int64_t t = tile0; t < tile1; ++t) multiply(t, panel, width, block, count);
        panel += width;
      }
    }
    if (finish_) finish_({first_row(tile0), first_row(tile1), panel0, panel1});
  }

  void multiply(int64_t tile, int64_t panel, int64_t width, int64_t block, int64_t count) const {
    const int64_t rows = rows_of(tile), group = block / group_blocks_;
    const WholeRows a = this->rows(tile);
    const auto* b = static_cast<const uint8_t*>(weights_.panel(panel));
    const int64_t block_bytes = weights_.scales_at() / blocks_;
    const Format scales = weights_.grouping().scales;
    tile_functions(rows)[log2_of(width)](
        {{a.words + block * kBlock / 4 * rows, a.scales + group * rows, a.offsets + group * rows},
         b + block * block_bytes, b + weights_.scales_at() + group * kLanes * element_bytes(scales), scales,
         weights_.panel_bytes(), count, group_blocks_, c_ + first_row(tile) * c_row_ + panel * kLanes, c_row_,
         block > 0});
  }

  const Matrix& weights_;
  int64_t m_;
  float* c_;
  int64_t c_row_;
  const std::function<void(const Region&)>& finish_;
  const WholeTable& table_;
  int64_t tiles_, blocks_, group_blocks_;
  int32_t* rounded_ = nullptr;
};

}  // namespace

void whole_matmul(const Matrix& weights, const float* a, int64_t a_row, int64_t m, float* c, int64_t c_row,
                  const std::function<void(const Region&)>& finish) {
  WholeProduct(weights, m, c, c_row, finish).run(a, a_row);
}

}  // namespace mindport
