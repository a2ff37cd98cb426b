#if defined(__x86_64__)
#include "vec_avx2.h"
// order matters: the register type first
#include "vector_math.h"
#include "tile.h"
#include "rows.h"

namespace mindport {
extern const KernelTable avx2_table = make_table();
}  // namespace mindport
#endif
