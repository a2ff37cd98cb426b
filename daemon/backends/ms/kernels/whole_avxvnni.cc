#include "whole_table.h"
#if defined(__AVXVNNI__)
#include "dot_avxvnni.h"
// order matters: the dot product first
#include "whole_tile.h"
#include "form_vnni.h"
#include "whole_many.h"

namespace mindport {
const WholeTable* whole_avxvnni() {
  static constexpr WholeTable table = make_many_table();
  return &table;
}
}  // namespace mindport
#else
namespace mindport {
const WholeTable* whole_avxvnni() { return nullptr; }
}  // namespace mindport
#endif
