// Few rows: memory and arithmetic are busy at the same time, each block of weights being fetched while the one before
// it is computed.
#include <algorithm>
#include <numeric>

#include "product.h"
#include "row_tiles.h"
#include "threadpool.h"
#include "turns.h"

namespace mindport {
namespace {

constexpr int64_t kColumns = 16;       // a piece has a multiple of: a line of A
constexpr int64_t kStreamLead = 8192;  // bytes to fetch ahead in a single panel

class FewRows {
 public:
  explicit FewRows(const Product& product)
      : p_(product), tiles_(p_.m, p_.table.few_rows),
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
      else if (tiles_.count() == 1) columns(region);
      else turns(region);
      if (p_.finish) p_.finish(region);
    });
  }

 private:
  int64_t widest(int64_t panels) const {
    return mindport::widest(p_.table, p_.weights.format(), tiles_.largest(), panels);
  }
  const char* at(int64_t panel, int64_t k) const {
    return static_cast<const char*>(p_.weights.panel(panel)) + k * column_bytes_;
  }

  // One tile takes all columns, but lets those of the next panels be fetched at the end.
  void columns(const Region& region) const {
    const int64_t cols = p_.weights.cols();
    const int64_t before = std::max<int64_t>(0, (cols - kLead / column_bytes_) / kColumns * kColumns);
    for (int64_t panel = region.panel0, next; panel < region.panel1; panel = next) {
      const int64_t width = widest(region.panel1 - panel);
      next = panel + width;
      if (before > 0) multiply(0, {panel, width, 0, before}, region, at(panel, cols - before), kLine);
      multiply(0, {panel, width, before, cols}, region, at(next < p_.weights.panels() ? next : panel, 0), kLine);
    }
  }

  void turns(const Region& region) const {
    const auto visit = [&](const Piece& piece, const Piece& next) {
      const char* ahead = at(next.panel < p_.weights.panels() ? next.panel : piece.panel, next.begin);
      const int64_t step = fetch_step(piece, next, tiles_.count());
      for (int64_t t = 0; t < tiles_.count(); ++t)
        multiply(t, piece, region, ahead + t * piece.size() * column_bytes_ / kLine * step, step);
    };
    const auto width = [&](int64_t panels) { return widest(panels); };
    take_turns(region, {p_.weights.cols(), column_bytes_, kColumns}, width, visit);
  }

  void multiply(int64_t tile, const Piece& piece, const Region& region, const char* ahead, int64_t step) const {
    const int64_t row = tiles_.first(tile), rows = tiles_.rows(tile);
    p_.table.tile[static_cast<int>(p_.weights.format())][rows][piece.width](
        {p_.a + row * p_.a_row + piece.begin, p_.a_row, at(piece.panel, piece.begin), p_.weights.panel_elements(),
         piece.size(), region.at(row, piece.panel), region.c_row, piece.begin > 0, ahead, step});
  }

  void stream(const Region& region) const {
    for (int64_t panel = region.panel0; panel < region.panel1; ++panel)
      stream_({packed_, 0, at(panel, 0), 0, p_.weights.cols(), region.at(0, panel), region.c_row, false,
               at(panel, 0) + kStreamLead, kLine});
  }

  const Product& p_;
  RowTiles tiles_;
  int64_t column_bytes_;
  TileFunction stream_;  // a tile of all rows and one panel where converting weights twice would cost more, or null
  float* packed_ = nullptr;
};

}  // namespace

void multiply_few(const Product& product) { FewRows(product).run(); }

}  // namespace mindport
