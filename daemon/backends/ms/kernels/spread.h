// Weights of four bits to bytes.
#pragma once

#include "whole_table.h"

namespace mindport {
namespace {

inline void spread_nibbles(const uint8_t* b, int64_t blocks, uint8_t* out) {
  for (int64_t i = 0; i < blocks * 4; ++i) {
#pragma GCC unroll 4
    for (int n = 0; n < kRegisters; ++n) {
      const I raw = i_load(b + i * 64 + n * 4 * L);
      i_store(out + i * 128 + n * 4 * L, low_nibbles(raw));
      i_store(out + i * 128 + 64 + n * 4 * L, high_nibbles(raw));
    }
  }
}

}  // namespace
}  // namespace mindport
