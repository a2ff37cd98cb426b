#if defined(__aarch64__)
#include "vec_neon.h"
// order matters: the register type first
#include "vector_math.h"
#include "tile.h"
#include "rows.h"

namespace mindport {
extern const KernelTable neon_table = make_table();
}  // namespace mindport
#endif
