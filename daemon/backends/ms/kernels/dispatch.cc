// Chooses the instruction set at run time.
#include <atomic>
#include <cstring>
#include <initializer_list>

#include "table.h"

namespace mindport {
namespace {

bool has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

bool has_avx512() {
#if defined(__x86_64__)
  return has_avx2() && __builtin_cpu_supports("avx512f");
#else
  return false;
#endif
}

const KernelTable* table_named(const char* name) {
  if (std::strcmp(name, "portable") == 0) return &portable_table;
#if defined(__x86_64__)
  if (std::strcmp(name, "avx2") == 0 && has_avx2()) return &avx2_table;
  if (std::strcmp(name, "avx512") == 0 && has_avx512()) return &avx512_table;
#endif
  return nullptr;
}

const KernelTable* best_table() {
  for (const char* name : {"avx512", "avx2"}) {
    const KernelTable* table = table_named(name);
    if (table != nullptr) return table;
  }
  return &portable_table;
}

std::atomic<const KernelTable*>& chosen() {
  static std::atomic<const KernelTable*> table{best_table()};
  return table;
}

}  // namespace

const KernelTable& kernels() { return *chosen().load(std::memory_order_relaxed); }

bool select_kernels(const char* name) {
  const KernelTable* table = table_named(name);
  if (table == nullptr) return false;
  chosen().store(table);
  return true;
}

}  // namespace mindport
