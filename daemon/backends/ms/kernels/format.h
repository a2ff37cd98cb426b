// Number formats of packed weights, and the scalar conversions used where no instruction does it.
#pragma once

#include <cstdint>
#include <cstring>

namespace mindport {

enum class Format : int32_t { float32 = 0, bfloat16 = 1, float16 = 2, int8 = 3, int4 = 4 };
constexpr int kFloatFormats = 3;  // the first ones; the others hold whole numbers that share scales
constexpr int kFormats = 5;
constexpr int64_t kLanes = 16;  // output rows of a panel, positions of a KV block
constexpr int64_t kLine = 64;   // bytes of a cache
constexpr int64_t kLead = 2048;  // bytes to fetch ahead in each panel: the hardware alone reaches 80 %
constexpr int64_t kBlock = 32;  // columns of whole numbers taken at a time; groups are multiples of it

constexpr bool is_float(Format format) { return static_cast<int>(format) < kFloatFormats; }
// Of whole numbers: what is added to them, so that they are stored from 0 on.
constexpr int half_range(Format format) { return format == Format::int8 ? 128 : 8; }
// Of the float formats.
constexpr int64_t element_bytes(Format format) { return format == Format::float32 ? 4 : 2; }
// Columns of a panel whose elements lie side by side: bfloat16 is widened by one operation from either half of a word.
constexpr int64_t columns_together(Format format) { return format == Format::bfloat16 ? 2 : 1; }
constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

static inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline float from_bfloat16(uint16_t half) { return bits_float(static_cast<uint32_t>(half) << 16); }

static inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);  // keep NaN a NaN
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);                  // nearest, ties to even
}

static inline float from_float16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t rest = half & 0x7fffu;
  if (rest >= 0x7c00u) return bits_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  // Shifting exponent and mantissa into place and multiplying by 2^112 corrects the bias, subnormals included.
  return bits_float(sign | float_bits(bits_float(rest << 13) * bits_float(0x77800000u)));
}

static inline uint16_t to_float16(float value) {
  const uint32_t bits = float_bits(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // rounds to infinity
  if (magnitude < 0x38800000u) {                        // subnormal: let float addition round at 2^-24
    const float rounded = bits_float(magnitude) + 0.5f;
    return sign | static_cast<uint16_t>(float_bits(rounded) - float_bits(0.5f));
  }
  const uint32_t rebased = magnitude - 0x38000000u;
  return sign | static_cast<uint16_t>((rebased + 0xfffu + (rebased >> 13 & 1u)) >> 13);
}

static inline float element(const void* data, int64_t index, Format format) {
  if (format == Format::float32) return static_cast<const float*>(data)[index];
  const uint16_t half = static_cast<const uint16_t*>(data)[index];
  return format == Format::bfloat16 ? from_bfloat16(half) : from_float16(half);
}

// Of a panel of a float format.
constexpr int64_t panel_elements(int64_t cols, Format format) { return round_up(cols, columns_together(format)) * kLanes; }
constexpr int64_t panel_index(int64_t column, int64_t lane, int64_t together) {
  return column / together * together * kLanes + lane * together + column % together;
}

}  // namespace mindport
