// How several tiles of rows take turns at pieces of weights, while the next piece is fetched.
#pragma once

#include <algorithm>

#include "matmul.h"

namespace mindport {

constexpr int64_t kPieceBytes = 24576;  // of weights: with the next piece they fill a first-level cache

// Columns begin .. end, as a caller counts them, of panels beside each other.
struct Piece {
  int64_t panel, width, begin, end;
  int64_t size() const { return end - begin; }
};

// How the columns of a panel may be cut: `count` of them, of so many bytes, at multiples of `unit`.
struct Cut {
  int64_t count, bytes, unit;
};

// Calls visit(piece, next) for all pieces of a region, panel by panel; what follows a region is taken to be alike.
// Sizes are even: of a piece larger than the one before it, a part would not be fetched in time.
template <class Widest, class Visit>
void take_turns(const Region& region, const Cut& columns, const Widest& widest, const Visit& visit) {
  const int64_t units = (columns.count + columns.unit - 1) / columns.unit;
  const auto passes_at = [&](int64_t width) {
    return std::clamp(width * units * columns.unit * columns.bytes / kPieceBytes, int64_t{1}, units);
  };
  const int64_t usual = widest(region.panel1 - region.panel0), usual_passes = passes_at(usual);
  const auto at = [&](int64_t panel, int64_t pass) {
    const int64_t left = region.panel1 - panel, width = left <= 0 || left >= usual ? usual : widest(left);
    const int64_t passes = width == usual ? usual_passes : passes_at(width);
    const int64_t end = units * (pass + 1) / passes * columns.unit;
    return Piece{panel, width, units * pass / passes * columns.unit, std::min(end, columns.count)};
  };
  int64_t pass = 0;
  for (Piece piece = at(region.panel0, 0), next; piece.panel < region.panel1; piece = next) {
    const bool whole = piece.end == columns.count;
    pass = whole ? 0 : pass + 1;
    next = whole ? at(piece.panel + piece.width, 0) : at(piece.panel, pass);
    visit(piece, next);
  }
}

// What one of `tiles` fetches of the next piece: bytes between the lines that it asks for, one for each line it reads.
inline int64_t fetch_step(const Piece& piece, const Piece& next, int64_t tiles) {
  return (kLine * std::max(next.size(), piece.size()) / piece.size() + tiles - 1) / tiles;
}

}  // namespace mindport
