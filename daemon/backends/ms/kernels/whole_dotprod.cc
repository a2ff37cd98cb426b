#include "whole_table.h"
#if defined(__ARM_FEATURE_DOTPROD)
#include "dot_dotprod.h"
// order matters: the dot product first
#include "whole_tile.h"

namespace mindport {
const WholeTable* whole_dotprod() {
  static constexpr WholeTable table = make_whole_table();
  return &table;
}
}  // namespace mindport
#else
namespace mindport {
const WholeTable* whole_dotprod() { return nullptr; }
}  // namespace mindport
#endif
