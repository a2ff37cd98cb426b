#include "whole_table.h"
#if defined(__AVX512VNNI__)
#include "dot_avx512vnni.h"
// order matters: the dot product first
#include "whole_tile.h"
#include "form_vnni.h"
#include "whole_many.h"

namespace mindport {
const WholeTable* whole_avx512vnni() {
  static constexpr WholeTable table = make_many_table();
  return &table;
}
}  // namespace mindport
#else
namespace mindport {
const WholeTable* whole_avx512vnni() { return nullptr; }
}  // namespace mindport
#endif
