// Chooses the instruction set at run time.
#include <atomic>
#include <cstring>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include "table.h"
#include "whole_table.h"

namespace mindport {
namespace {

struct InstructionSet {
  const char* name;
  bool (*present)();
  const KernelTable* floats;
  const WholeTable* (*wholes)();
  const WholeTable* (*wholes_7bit)() = nullptr;  // null: no quicker
};

bool always() { return true; }

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avxvnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx2() && whole_avxvnni() != nullptr && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1) != 0;
}

bool has_avx512() { return has_avx2() && __builtin_cpu_supports("avx512f"); }

bool has_avx512vnni() {
  return has_avx512() && whole_avx512vnni() != nullptr && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
#elif defined(__aarch64__)
// As the kernel names them; headers of older systems do not know all.
constexpr unsigned long kDotProduct = 1ul << 20;     // of AT_HWCAP
constexpr unsigned long kMatrixProduct = 1ul << 13;  // of AT_HWCAP2

bool has_dotprod() { return whole_dotprod() != nullptr && (getauxval(AT_HWCAP) & kDotProduct) != 0; }
bool has_i8mm() { return whole_i8mm() != nullptr && (getauxval(AT_HWCAP2) & kMatrixProduct) != 0; }
#endif

// The best first.
const InstructionSet instruction_sets[] = {
#if defined(__x86_64__)
    {"avx512vnni", has_avx512vnni, &avx512_table, whole_avx512vnni},
    {"avx512", has_avx512, &avx512_table, whole_avx2, whole_avx2_7bit},
    {"avxvnni", has_avxvnni, &avx2_table, whole_avxvnni},
    {"avx2", has_avx2, &avx2_table, whole_avx2, whole_avx2_7bit},
#elif defined(__aarch64__)
    {"i8mm", has_i8mm, &neon_table, whole_i8mm},
    {"dotprod", has_dotprod, &neon_table, whole_dotprod},
    {"neon", always, &neon_table, whole_neon},
#endif
    {"portable", always, &portable_table, whole_portable},
};

const InstructionSet* best() {
  for (const InstructionSet& set : instruction_sets)
    if (set.present()) return &set;
  return nullptr;  // not reached: the last one is always there
}

std::atomic<const InstructionSet*>& chosen() {
  static std::atomic<const InstructionSet*> set{best()};
  return set;
}

std::atomic<int>& bits_of_activations() {
  static std::atomic<int> bits{8};
  return bits;
}

const InstructionSet& current() { return *chosen().load(std::memory_order_relaxed); }

}  // namespace

const KernelTable& kernels() { return *current().floats; }
const WholeTable& whole_kernels() {
  const InstructionSet& set = current();
  return *(activation_bits() == 7 && set.wholes_7bit != nullptr ? set.wholes_7bit : set.wholes)();
}
int activation_bits() { return bits_of_activations().load(std::memory_order_relaxed); }
int quickest_activation_bits() { return current().wholes_7bit != nullptr ? 7 : 8; }
const char* kernels_name() { return current().name; }

bool select_kernels(const char* name) {
  for (const InstructionSet& set : instruction_sets) {
    if (std::strcmp(set.name, name) != 0 || !set.present()) continue;
    chosen().store(&set);
    return true;
  }
  return false;
}

void select_activation_bits(int bits) { bits_of_activations().store(bits); }

}  // namespace mindport
