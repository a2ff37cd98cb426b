#include "whole_matmul.h"

#include <algorithm>
#include <vector>

#include "row_tiles.h"
#include "threadpool.h"
#include "turns.h"
#include "whole_table.h"

namespace mindport {
namespace {

constexpr int64_t kDepthBlocks = 16;  // blocks of 32 columns per pass over several tiles of few rows, and the most of
constexpr int64_t kManyBlocks = 32;   // many: two panels of them stay in the first-level cache
constexpr int64_t kRowsAtOnce = 240;  // rows per task, so that their columns of a pass stay in the second-level cache
constexpr int64_t kPanelsAtOnce = 8;  // most panels per task of the blocked product
constexpr int64_t kTasksAThread = 8;  // that there should be for an even finish
constexpr int64_t kDirectTiles = 3;   // tiles of rows up to which weights stream through once
constexpr int64_t kRoundingCost = 16; // of an activation, in multiply-adds
constexpr int64_t kPartsOfRows = 4;   // that are rounded apart

int log2_of(int64_t width) { return width == 4 ? 2 : width == 2 ? 1 : 0; }

// For weights of a block of columns in the form for many rows.
WorkerMemory& expanding_room() {
  static WorkerMemory memory;
  return memory;
}

class WholeProduct {
 public:
  WholeProduct(const Matrix& weights, int64_t m, const Output& output, const std::function<void(const Region&)>& finish)
      : weights_(weights), m_(m), output_(output), finish_(finish), table_(whole_kernels()),
        many_(table_.many[weights.format() == Format::int8 ? 0 : 1]),
        is_many_(m > kDirectTiles * table_.tile_rows && many_.tile_rows > 0),
        tiles_(m, is_many_ ? many_.tile_rows : table_.tile_rows), blocks_(weights.depth() / kBlock),
        block_bytes_(weights.scales_at() / blocks_), group_blocks_(weights.grouping().size / kBlock),
        groups_(weights.groups()), narrow_(table_.narrow_sums && weights.format() == Format::int4),
        offsets_(narrow_ ? narrow_parts(group_blocks_) : 1), row_words_(weights.depth() / 4 + (1 + offsets_) * groups_) {
    static Memory rounded, widened;
    rounded_ = reinterpret_cast<int32_t*>(rounded.at_least(static_cast<size_t>(m * row_words_)));
    if (is_many_) expanding_room().reserve(ThreadPool::instance().size());
    if (is_many_ && many_.rows != nullptr)
      widened_ = reinterpret_cast<int32_t*>(widened.at_least(static_cast<size_t>(m * blocks_ * many_.block_words)));
  }

  void run(const float* a, int64_t a_row) {
    round(a, a_row);
    if (is_many_ || tiles_.count() > kDirectTiles) blocked();
    else direct();
  }

 private:
  WholeRows rows(int64_t tile) const {
    int32_t* words = rounded_ + tiles_.first(tile) * row_words_;
    int32_t* scales = words + weights_.depth() / 4 * tiles_.rows(tile);
    return {words, reinterpret_cast<float*>(scales), scales + groups_ * tiles_.rows(tile)};
  }

  int32_t* widened(int64_t tile) const { return widened_ + tiles_.first(tile) * blocks_ * many_.block_words; }

  void round(const float* a, int64_t a_row) const {
    const int64_t parts = std::min(groups_, kPartsOfRows), pieces = tiles_.count() * parts;
    const int64_t cost = m_ * weights_.cols() / pieces * kRoundingCost, grain = std::max<int64_t>(1, kWorthAThread / cost);
    ThreadPool::instance().each(pieces, grain, [&](int64_t piece, int64_t last, int) {
      for (; piece < last; ++piece) {
        const int64_t part = piece % parts;
        round(a, a_row, piece / parts, groups_ * part / parts, groups_ * (part + 1) / parts);
      }
    });
  }

  // Some groups of the rows of a tile.
  void round(const float* a, int64_t a_row, int64_t tile, int64_t group0, int64_t group1) const {
    const int most = weights_.format() == Format::int8 && activation_bits() == 7 ? kLargest7Bit : kLargest8Bit;
    const Rounding how{tiles_.rows(tile), weights_.grouping().size, half_range(weights_.format()), most, narrow_};
    const int64_t column = group0 * how.group, columns = std::min(weights_.cols(), group1 * how.group) - column;
    const WholeRows all = rows(tile);
    const int64_t at = group0 * how.rows;
    const WholeRows out{all.words + column / 4 * how.rows, all.scales + at, all.offsets + at * offsets_};
    table_.round(a + tiles_.first(tile) * a_row + column, a_row, columns, how, out);
    if (widened_ != nullptr)
      many_.rows(out.words, round_up(columns, kBlock) / 4, how.rows,
                 widened(tile) + column / kBlock * many_.block_words * how.rows);
  }

  // The most panels every tile can take at once.
  int64_t widest(int64_t panels) const {
    const auto& functions = tile_functions(tiles_.largest());
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
    ThreadPool::instance().each_stretch(panels, grain, [&](int64_t first, int64_t last, int worker) {
      task(0, tiles_.count(), output_.region(0, m_, first, last, worker));
    });
  }

  // Many rows: a block of columns at a time, so that weights and activations stay in the caches.
  void blocked() const {
    auto& pool = ThreadPool::instance();
    const int64_t groups = (m_ + kRowsAtOnce - 1) / kRowsAtOnce;
    const int64_t even = weights_.panels() * groups / (kTasksAThread * pool.size());
    const int64_t wanted = std::clamp(even, int64_t{2}, kPanelsAtOnce);
    const int64_t per_column = round_up(wanted, std::max<int64_t>(2, weights_.parts()));
    const int64_t columns = (weights_.panels() + per_column - 1) / per_column;
    pool.each(groups * columns, 1, [&](int64_t first, int64_t last, int worker) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t group = i / columns, column = i % columns;
        const int64_t tile0 = tiles_.count() * group / groups, tile1 = tiles_.count() * (group + 1) / groups;
        const int64_t panel0 = column * per_column, panel1 = std::min(weights_.panels(), (column + 1) * per_column);
        const Region region = output_.region(tiles_.first(tile0), tiles_.first(tile1), panel0, panel1, worker);
        if (is_many_) many_task(tile0, tile1, region, worker);
        else task(tile0, tile1, region);
      }
    });
  }

  void task(int64_t tile0, int64_t tile1, const Region& region) const {
    if (tiles_.count() == 1) {
      stream(region);
    } else if (tiles_.count() <= kDirectTiles) {
      turns(region);
    } else {
      const int64_t depth = round_up(kDepthBlocks, group_blocks_);
      for (int64_t block = 0; block < blocks_; block += depth) {
        const int64_t end = std::min(block + depth, blocks_);
        for (int64_t panel = region.panel0, width; panel < region.panel1; panel += width) {
          width = widest(region.panel1 - panel);
          for (int64_t t = tile0; t < tile1; ++t)
            multiply(t, {panel, width, block, end}, region, block_at(panel, block) + kLead, kLine);
        }
      }
    }
    if (finish_) finish_(region);
  }

  // One tile takes all columns, but lets those of the next panels be fetched at the end.
  void stream(const Region& region) const {
    const int64_t before = std::max<int64_t>(0, blocks_ - kLead / block_bytes_) / group_blocks_ * group_blocks_;
    for (int64_t panel = region.panel0, next; panel < region.panel1; panel = next) {
      const int64_t width = widest(region.panel1 - panel);
      next = panel + width;
      const uint8_t* ahead = block_at(next < weights_.panels() ? next : panel, 0);
      if (before > 0) multiply(0, {panel, width, 0, before}, region, block_at(panel, blocks_ - before), kLine);
      multiply(0, {panel, width, before, blocks_}, region, ahead, kLine);
    }
  }

  void turns(const Region& region) const {
    const auto visit = [&](const Piece& piece, const Piece& next) {
      const uint8_t* ahead = block_at(next.panel < weights_.panels() ? next.panel : piece.panel, next.begin);
      const int64_t step = fetch_step(piece, next, tiles_.count());
      for (int64_t t = 0; t < tiles_.count(); ++t)
        multiply(t, piece, region, ahead + t * piece.size() * block_bytes_ / kLine * step, step);
    };
    const auto width = [&](int64_t panels) { return widest(panels); };
    take_turns(region, {blocks_, block_bytes_, group_blocks_}, width, visit);
  }

  void many_task(int64_t tile0, int64_t tile1, const Region& region, int worker) const {
    const int64_t panel0 = region.panel0, panel1 = region.panel1;
    const int64_t passes = (blocks_ + kManyBlocks - 1) / kManyBlocks;
    const int64_t depth = round_up((blocks_ + passes - 1) / passes, group_blocks_);
    const auto at = [&](int64_t panel, int64_t block) {
      return Piece{panel, panel1 - panel >= many_.width ? many_.width : 1, block, std::min(block + depth, blocks_)};
    };
    for (Piece piece = at(panel0, 0), next; piece.begin < blocks_; piece = next) {
      const bool last = piece.panel + piece.width >= panel1;
      next = last ? at(panel0, piece.begin + piece.size()) : at(piece.panel + piece.width, piece.begin);
      multiply_many(piece, next, tile0, tile1, region, worker);
    }
    if (finish_) finish_(region);
  }

  const uint8_t* block_at(int64_t panel, int64_t block) const {
    return static_cast<const uint8_t*>(weights_.panel(panel)) + block * block_bytes_;
  }
  const uint8_t* scales_at(int64_t panel, int64_t group) const {
    return static_cast<const uint8_t*>(weights_.panel(panel)) + weights_.scales_at() +
           group * kLanes * element_bytes(weights_.grouping().scales);
  }

  // Each tile fetches a panel of the next piece, or a part of one where fetches are rare.
  void multiply_many(const Piece& piece, const Piece& next, int64_t tile0, int64_t tile1, const Region& region,
                     int worker) const {
    const int64_t group = piece.begin / group_blocks_;
    const uint8_t* b = block_at(piece.panel, piece.begin);
    int64_t b_panel = weights_.panel_bytes();
    if (many_.weights != nullptr) {
      b_panel = piece.size() * many_.block_bytes;
      auto* room = reinterpret_cast<uint8_t*>(
          expanding_room().at_least(worker, static_cast<size_t>(piece.width * b_panel / 4)));
      for (int64_t i = 0; i < piece.width; ++i)
        many_.weights(block_at(piece.panel + i, piece.begin), piece.size(), room + i * b_panel);
      b = room;
    }
    for (int64_t t = tile0; t < tile1; ++t) {
      const int64_t rows = tiles_.rows(t), turn = t - tile0, parts = many_.fetch_words, panel = next.panel + turn / parts;
      const WholeRows a = this->rows(t);
      const bool fetch = next.size() > 0 && panel < next.panel + next.width;
      many_.tile[rows][piece.width > 1](
          {{(widened_ != nullptr ? widened(t) : a.words) + piece.begin * many_.block_words * rows,
            a.scales + group * rows, a.offsets + group * offsets_ * rows},
           b, scales_at(piece.panel, group), weights_.grouping().scales, b_panel, weights_.panel_bytes(), piece.size(),
           group_blocks_, region.at(tiles_.first(t), piece.panel), region.c_row, piece.begin > 0,
           fetch ? block_at(panel, next.begin) + turn % parts * next.size() * block_bytes_ / parts : nullptr,
           block_bytes_ / many_.block_words});
    }
  }

  void multiply(int64_t tile, const Piece& piece, const Region& region, const uint8_t* ahead, int64_t step) const {
    const int64_t rows = tiles_.rows(tile), group = piece.begin / group_blocks_;
    const WholeRows a = this->rows(tile);
    tile_functions(rows)[log2_of(piece.width)](
        {{a.words + piece.begin * kBlock / 4 * rows, a.scales + group * rows, a.offsets + group * offsets_ * rows},
         block_at(piece.panel, piece.begin), scales_at(piece.panel, group), weights_.grouping().scales,
         weights_.panel_bytes(), weights_.panel_bytes(), piece.size(), group_blocks_,
         region.at(tiles_.first(tile), piece.panel), region.c_row, piece.begin > 0, ahead, step});
  }

  const Matrix& weights_;
  int64_t m_;
  const Output& output_;
  const std::function<void(const Region&)>& finish_;
  const WholeTable& table_;
  const WholeMany& many_;
  bool is_many_;
  RowTiles tiles_;
  int64_t blocks_, block_bytes_, group_blocks_, groups_;
  bool narrow_;
  int64_t offsets_;  // of a group and row
  int64_t row_words_;
  int32_t* rounded_ = nullptr;
  int32_t* widened_ = nullptr;  // the words of activations in the form for many rows, or null
};

}  // namespace

void whole_matmul(const Matrix& weights, const float* a, int64_t a_row, int64_t m, const Output& output,
                  const std::function<void(const Region&)>& finish) {
  WholeProduct(weights, m, output, finish).run(a, a_row);
}

}  // namespace mindport
