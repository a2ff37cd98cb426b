#include "whole_table.h"
#if defined(__ARM_FEATURE_MATMUL_INT8)
#include "dot_i8mm.h"
// order matters: the dot product first
#include "whole_tile.h"
#include "whole_pairs.h"

namespace mindport {
const WholeTable* whole_i8mm() {
  static constexpr WholeTable table = make_pair_table();
  return &table;
}
}  // namespace mindport
#else
namespace mindport {
const WholeTable* whole_i8mm() { return nullptr; }
}  // namespace mindport
#endif
