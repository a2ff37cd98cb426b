#include "matmul.h"

#include <algorithm>
#include <vector>

#include "product.h"
#include "row_tiles.h"
#include "threadpool.h"
#include "whole_matmul.h"

namespace mindport {
namespace {

constexpr int64_t kDepth = 896;         // most columns of A and W per pass of the blocked product
constexpr int64_t kRowsAtOnce = 240;    // rows of A per task, whose columns of a pass stay in the second-level cache
constexpr int64_t kPanelsAtOnce = 8;    // panels per task of the blocked product
constexpr int64_t kDirectTiles = 3;     // tiles of rows up to which packing A does not pay

WorkerMemory& unpacking_room() {
  static WorkerMemory memory;
  return memory;
}

WorkerMemory& region_room() {
  static WorkerMemory memory;
  return memory;
}

// Many rows: A is packed, weights are converted a block at a time, C is resumed block by block.
class Blocked {
 public:
  explicit Blocked(const Product& product) : p_(product), tiles_(product.m, product.table.tile_rows) {
    packed_ = packing_room(static_cast<size_t>(p_.m * p_.weights.cols()));
    unpacking_room().reserve(ThreadPool::instance().size());
  }

  void run() {
    auto& pool = ThreadPool::instance();
    const int64_t depth = p_.weights.cols(), tiles = tiles_.count();
    pool.each(tiles, 1, [&](int64_t first, int64_t last, int) {
      for (int64_t t = first; t < last; ++t)
        p_.table.pack_rows(p_.a + tiles_.first(t) * p_.a_row, p_.a_row, static_cast<int>(tiles_.rows(t)), depth,
                           packed_ + tiles_.first(t) * depth);
    });
    const int64_t groups = (p_.m + kRowsAtOnce - 1) / kRowsAtOnce;
    const int64_t panels = round_up(kPanelsAtOnce, p_.weights.parts());
    const int64_t columns = (p_.weights.panels() + panels - 1) / panels;
    pool.each(groups * columns, 1, [&](int64_t first, int64_t last, int worker) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t group = i / columns, column = i % columns;
        task(tiles * group / groups, tiles * (group + 1) / groups, column * panels,
             std::min(p_.weights.panels(), (column + 1) * panels), worker);
      }
    });
  }

 private:
  struct Block {
    int64_t panel, width, k, depth;
  };

  void task(int64_t tile0, int64_t tile1, int64_t panel0, int64_t panel1, int worker) {
    const int64_t cols = p_.weights.cols();
    const int64_t passes = (cols + kDepth - 1) / kDepth;
    const int64_t depth = round_up((cols + passes - 1) / passes, columns_together(p_.weights.format()));
    const auto at = [&](int64_t panel, int64_t k) {
      const int64_t width = panel1 - panel >= p_.table.packed_width ? p_.table.packed_width : 1;
      return Block{panel, width, k, std::min(depth, cols - k)};
    };
    const Region region = p_.output.region(tiles_.first(tile0), tiles_.first(tile1), panel0, panel1, worker);
    for (Block block = at(panel0, 0), next; block.k < cols; block = next) {
      const bool last = block.panel + block.width >= panel1;
      next = last ? at(panel0, block.k + block.depth) : at(block.panel + block.width, block.k);
      multiply(block, next, tile0, tile1, region, worker);
    }
    if (p_.finish) p_.finish(region);
  }

  // Each tile fetches its share of a panel of the next block, evenly: all at once would keep out its own loads.
  void multiply(const Block& block, const Block& next, int64_t tile0, int64_t tile1, const Region& region, int worker) {
    const int64_t step = kLanes * element_bytes(p_.weights.format());
    const int64_t shares = std::max<int64_t>(1, (tile1 - tile0) / next.width);  // of a panel
    int64_t stride = 0;
    const float* b = floats(block, worker, &stride);
    for (int64_t t = tile0; t < tile1; ++t) {
      const int64_t row = tiles_.first(t), rows = tiles_.rows(t), share = t - tile0, panel = next.panel + share / shares;
      const bool fetch = next.depth > 0 && panel < next.panel + next.width;
      const int64_t ahead = next.k * step + next.depth * step * (share % shares) / shares;
      p_.table.packed_tile[rows][block.width > 1](
          {packed_ + row * p_.weights.cols() + block.k * rows, 0, b, stride, block.depth,
           region.at(row, block.panel), region.c_row, block.k > 0,
           fetch ? static_cast<const char*>(p_.weights.panel(panel)) + ahead : nullptr,
           next.depth * step / shares / block.depth});
    }
  }

  // Float32 weights are used where they are, others are converted in a buffer of the worker.
  const float* floats(const Block& block, int worker, int64_t* stride) const {
    const Matrix& w = p_.weights;
    if (w.format() == Format::float32) {
      *stride = w.panel_elements();
      return static_cast<const float*>(w.panel(block.panel)) + block.k * kLanes;
    }
    float* out = unpacking_room().at_least(worker, kDepth * kLanes * 4);
    *stride = kDepth * kLanes;
    for (int64_t i = 0; i < block.width; ++i) {
      const auto* source = static_cast<const uint8_t*>(w.panel(block.panel + i)) + block.k * kLanes * element_bytes(w.format());
      p_.table.unpack[static_cast<int>(w.format())](source, block.depth, out + i * *stride);
    }
    return out;
  }

  const Product& p_;
  RowTiles tiles_;
  float* packed_ = nullptr;
};

}  // namespace

float* packing_room(size_t count) {
  static Memory packed;
  return packed.at_least(count);
}

Output::Output(float* c, int64_t c_row) : c_(c), c_row_(c_row) {
  if (c == nullptr) region_room().reserve(ThreadPool::instance().size());
}

Region Output::region(int64_t row0, int64_t row1, int64_t panel0, int64_t panel1, int worker) const {
  const int64_t width = (panel1 - panel0) * kLanes;
  if (c_ != nullptr) return {row0, row1, panel0, panel1, c_ + row0 * c_row_ + panel0 * kLanes, c_row_};
  return {row0, row1, panel0, panel1, region_room().at_least(worker, static_cast<size_t>((row1 - row0) * width)), width};
}

void matmul(const Matrix& weights, const float* a, int64_t a_row, int64_t m, float* c, int64_t c_row,
            const std::function<void(const Region&)>& finish) {
  if (m < 1) return;
  const Output output(c, c_row);
  if (!is_float(weights.format())) return whole_matmul(weights, a, a_row, m, output, finish);
  const Product product{weights, a, a_row, m, output, finish, kernels()};
  if (m <= kDirectTiles * product.table.tile_rows) multiply_few(product);
  else Blocked(product).run();
}

}  // namespace mindport
