#include "dot_portable.h"
// order matters: the dot product first
#include "whole_tile.h"

namespace mindport {
const WholeTable* whole_portable() {
  static constexpr WholeTable table = make_whole_table();
  return &table;
}
}  // namespace mindport
