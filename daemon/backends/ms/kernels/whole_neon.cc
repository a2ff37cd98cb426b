#include "whole_table.h"
#if defined(__aarch64__)
#include "dot_neon.h"
// order matters: the dot product first
#include "whole_tile.h"

namespace mindport {
const WholeTable* whole_neon() {
  static constexpr WholeTable table = make_whole_table();
  return &table;
}
}  // namespace mindport
#else
namespace mindport {
const WholeTable* whole_neon() { return nullptr; }
}  // namespace mindport
#endif
