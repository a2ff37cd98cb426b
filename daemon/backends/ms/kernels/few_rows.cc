// Few rows: memory and arithmetic are busy at the same time, each block of weights being fetched while the one before
// it is computed.
#include <algorithm>
#include <numeric>

#include "product.h"
#include "threadpool.h"

namespace mindport {
namespace {

constexpr int64_t kBlockBytes = 24576;        // of weights over which several tiles of rows pass
constexpr int64_t kColumns = 16;              // a block has a multiple of: a line of A
constexpr int64_t kStreamLead = 8192;         // bytes to fetch ahead in a single panel

class FewRows {
 public:
  explicit FewRows(const Product& product)
      : p_(product), tiles_((p_.m + p_.table.few_rows - 1) / p_.table.few_rows),
        column_bytes_(kLanes * element_bytes(p_.weights.format())),
        stream_(p_.m <= kStreamRows ? p_.table.stream_tile[static_cast<int>(p_.weights.format())][p_.m] : nullptr) {
    if (stream_ == nullptr) return;
    packed_ = packing_room(static_cast<size_t>(p_.m * p_.weights.cols()));
    p_.table.pack_rows(p_.a, p_.a_row, static_cast<int>(p_.m), p_.weights.cols(), packed_);
  }

  void run() const {
    const Matrix& w = p_.weights;
    const int64_t panels = w.panels(), width = stream_ != nullptr ? 1 : widest(panels);
    const int64_t work = w.panel_bytes() * panels * std::max<int64_t>(1, p_.m / 4);
    const int64_t grain = work < kWorthForking ? panels : std::lcm(width, w.parts());
    ThreadPool::instance().each_stretch(panels, grain, [&](int64_t first, int64_t last, int worker) {
      const Region region = p_.output.region(0, p_.m, first, last, worker);
      if (stream_ != nullptr) stream(region);
      else blocks(region);
      if (p_.finish) p_.finish(region);
    });
  }

 private:
  struct Block {
    int64_t panel, width, k, depth;
  };

  int64_t first_row(int64_t tile) const { return p_.m * tile / tiles_; }  // rows of tiles differ by one at most
  int64_t widest(int64_t panels) const {
    return mindport::widest(p_.table, p_.weights.format(), (p_.m + tiles_ - 1) / tiles_, panels);
  }
  const char* at(int64_t panel, int64_t k) const {
    return static_cast<const char*>(p_.weights.panel(panel)) + k * column_bytes_;
  }

  // One tile takes all columns, but lets those of the next panels be fetched at the end; several take turns.
  void blocks(const Region& region) const {
    const int64_t last = region.panel1;
    const int64_t cols = p_.weights.cols(), lead = kLead / column_bytes_;
    const auto begin = [&](int64_t panel, int64_t k) {
      const int64_t width = panel < last ? widest(last - panel) : 1;
      int64_t depth = kBlockBytes / (width * column_bytes_) / kColumns * kColumns;
      if (tiles_ == 1) depth = k == 0 && cols > lead ? cols - lead : lead;
      return Block{panel, width, k, std::min(depth, cols - k)};
    };
    for (Block block = begin(region.panel0, 0), next; block.panel < last; block = next) {
      const bool whole = block.k + block.depth == cols;
      next = whole ? begin(block.panel + block.width, 0) : begin(block.panel, block.k + block.depth);
      const char* ahead = next.panel < p_.weights.panels() ? at(next.panel, next.k) : at(block.panel, block.k);
      multiply(block, region, tiles_ == 1 && !whole ? at(block.panel, lead) : ahead);
    }
  }

  // Each tile of rows fetches its share of columns.
  void multiply(const Block& block, const Region& region, const char* ahead) const {
    const int64_t step = (kLine + tiles_ - 1) / tiles_;
    for (int64_t t = 0; t < tiles_; ++t) {
      const int64_t row = first_row(t), rows = first_row(t + 1) - row;
      p_.table.tile[static_cast<int>(p_.weights.format())][rows][block.width](
          {p_.a + row * p_.a_row + block.k, p_.a_row, at(block.panel, block.k), p_.weights.panel_elements(),
           block.depth, region.at(row, block.panel), region.c_row, block.k > 0,
           ahead + t * block.depth * column_bytes_ / kLine * step, step});
    }
  }

  void stream(const Region& region) const {
    for (int64_t panel = region.panel0; panel < region.panel1; ++panel)
      stream_({packed_, 0, at(panel, 0), 0, p_.weights.cols(), region.at(0, panel), region.c_row, false,
               at(panel, 0) + kStreamLead, column_bytes_});
  }

  const Product& p_;
  int64_t tiles_, column_bytes_;
  TileFunction stream_;  // a tile of all rows and one panel where converting weights twice would cost more, or null
  float* packed_ = nullptr;
};

}  // namespace

void multiply_few(const Product& product) { FewRows(product).run(); }

}  // namespace mindport
