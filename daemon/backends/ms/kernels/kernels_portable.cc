
#include "vec_portable.h"
// order matters: the register type first
#include "vector_math.h"
#include "tile.h"
#include "rows.h"

namespace mindport {
extern const KernelTable portable_table = make_table();
}  // namespace mindport

