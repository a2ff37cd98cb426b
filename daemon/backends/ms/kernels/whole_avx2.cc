#include "whole_table.h"
#if defined(__AVX2__)
#include "dot_avx2.h"
// order matters: the dot product first
#include "whole_tile.h"
#include "form_avx2.h"
#include "form_nibbles_avx2.h"
#include "whole_many.h"

namespace mindport {
const WholeTable* whole_avx2() {
  static constexpr WholeTable table = make_many_table();
  return &table;
}
}  // namespace mindport
#else
namespace mindport {
const WholeTable* whole_avx2() { return nullptr; }
}  // namespace mindport
#endif
