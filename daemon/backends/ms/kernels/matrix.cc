#include "matrix.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

namespace mindport {
namespace {

template <int64_t Together, class From, class To, class Convert>
int64_t pack_block(const FloatRows& rows, int64_t lane, To* panel, Convert convert) {
  int64_t faults = 0;
  constexpr int64_t kColumns = 64;  // at a time keep the block of the panel in the first-level cache
  for (int64_t k0 = 0; k0 < rows.cols; k0 += kColumns) {
    const int64_t k1 = std::min(rows.cols, k0 + kColumns);
    for (int64_t r = 0; r < rows.count; ++r) {
      const From* row = static_cast<const From*>(rows.first) + r * rows.stride;
      for (int64_t k = k0; k < k1; ++k) panel[panel_index(k, lane + r, Together)] = convert(row[k], faults);
    }
  }
  return faults;
}

struct Plain {  // the same format on both sides
  uint32_t exponent;
  template <class T>
  T operator()(T bits, int64_t& faults) const {
    faults += (bits & exponent) == exponent;
    return bits;
  }
};

uint32_t exponent_mask(Format format) {
  return format == Format::float32 ? 0x7f800000u : format == Format::bfloat16 ? 0x7f80u : 0x7c00u;
}

template <class From>
float widen(From bits, Format format) {
  if constexpr (sizeof(From) == 4) return bits_float(bits);
  else return format == Format::bfloat16 ? from_bfloat16(bits) : from_float16(bits);
}

template <class To>
struct Through {  // by way of float32
  Format from, to;
  template <class From>
  To operator()(From bits, int64_t& faults) const {
    const float value = widen(bits, from);
    To result;
    if constexpr (sizeof(To) == 4) result = float_bits(value);
    else result = to == Format::bfloat16 ? to_bfloat16(value) : to_float16(value);
    const uint32_t mask = exponent_mask(to);
    faults += (result & mask) == mask;
    return result;
  }
};

template <class From, class To>
int64_t pack_any(const FloatRows& rows, int64_t lane, void* panel, Format to) {
  const auto pack = [&](auto convert) {
    if (columns_together(to) == 2) return pack_block<2, From>(rows, lane, static_cast<To*>(panel), convert);
    return pack_block<1, From>(rows, lane, static_cast<To*>(panel), convert);
  };
  if constexpr (sizeof(From) == sizeof(To)) {
    if (rows.format == to) return pack(Plain{exponent_mask(to)});
  }
  return pack(Through<To>{rows.format, to});
}

float rounded(float value, Format format) {
  if (format == Format::float32) return value;
  return format == Format::bfloat16 ? from_bfloat16(to_bfloat16(value)) : from_float16(to_float16(value));
}

// The quotient rounded to the nearest whole number within the format's range, half the range added.
uint8_t whole(float value, float inverse, float range) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float wanted = std::min(range - 1.0f, std::max(-range, value * inverse));
  return static_cast<uint8_t>((wanted + kMagic) - kMagic + range);
}

void put_quad(uint8_t* panel, Format format, int64_t quad, int64_t lane, const uint8_t* values) {
  if (format == Format::int8) {
    std::memcpy(panel + quad * 64 + lane * 4, values, 4);
    return;
  }
  uint8_t* out = panel + quad / 2 * 64 + lane * 4;
  for (int i = 0; i < 4; ++i)
    out[i] = static_cast<uint8_t>(quad % 2 == 0 ? (out[i] & 0xf0) | values[i] : (out[i] & 0x0f) | values[i] << 4);
}

uint32_t spread(uint32_t nibbles) {  // four of them, a byte each
  nibbles = (nibbles | nibbles << 8) & 0x00ff00ffu;
  return (nibbles | nibbles << 4) & 0x0f0f0f0fu;
}

}  // namespace

int64_t pack_floats(const FloatRows& rows, int64_t lane, void* panel, Format format) {
  const bool wide_to = format == Format::float32;
  if (rows.format == Format::float32)
    return wide_to ? pack_any<uint32_t, uint32_t>(rows, lane, panel, format)
                   : pack_any<uint32_t, uint16_t>(rows, lane, panel, format);
  return wide_to ? pack_any<uint16_t, uint32_t>(rows, lane, panel, format)
                 : pack_any<uint16_t, uint16_t>(rows, lane, panel, format);
}

Matrix::Matrix(int64_t rows, int64_t cols, int64_t parts, Format format, Grouping grouping)
    : rows_(rows), cols_(cols), parts_(parts), panels_(round_up(rows, kLanes) / kLanes * parts), format_(format),
      grouping_(grouping) {
  if (rows <= 0 || cols <= 0 || parts <= 0) throw std::invalid_argument("a matrix needs positive dimensions");
  if (is_float(format)) {
    panel_bytes_ = panel_elements() * element_bytes(format);
  } else {
    if (grouping.size <= 0 || grouping.size % kBlock != 0 || !is_float(grouping.scales))
      throw std::invalid_argument("groups must be multiples of 32 columns, their scales floats");
    panel_bytes_ = round_up(scales_at() + groups() * kLanes * element_bytes(grouping.scales), 64);
  }
  memory_ = Reserve::instance().take(static_cast<size_t>(panels_ * panel_bytes_));
}

void Matrix::map(int descriptor, int64_t offset) {
  memory_ = Memory::of_file(descriptor, offset, memory_.size());
  mapped_ = true;
}

// Calls body(panel, lane, rows, done): `rows` rows from `lane` on, `done` rows after the first.
template <class Body>
void Matrix::each_panel(int64_t part, int64_t first, int64_t count, const Body& body) {
  if (mapped_) throw std::logic_error("the matrix lies in a file, which is read only");
  if (part < 0 || part >= parts_ || first < 0 || count < 0 || first + count > rows_)
    throw std::out_of_range("rows to pack lie outside the matrix");
  for (int64_t row = first; row < first + count;) {
    const int64_t lane = row % kLanes, rows = std::min(kLanes - lane, first + count - row);
    body(memory_.bytes() + (row / kLanes * parts_ + part) * panel_bytes_, lane, rows, row - first);
    row += rows;
  }
}

int64_t Matrix::pack(int64_t part, int64_t first, int64_t count, const void* source, Format format) {
  int64_t faults = 0;
  each_panel(part, first, count, [&](uint8_t* panel, int64_t lane, int64_t rows, int64_t done) {
    const uint8_t* from = static_cast<const uint8_t*>(source) + done * cols_ * element_bytes(format);
    faults += is_float(format_) ? pack_floats({from, format, rows, cols_, cols_}, lane, panel, format_)
                                : round_rows(panel, lane, rows, from, format);
  });
  return faults;
}

// Round to nearest: int8 takes the largest magnitude of a group to 127; int4 takes its extreme to -8, which has no
// counterpart above, so that all sixteen values are used.
int64_t Matrix::round_rows(uint8_t* panel, int64_t lane, int64_t rows, const uint8_t* source, Format format) const {
  const auto range = static_cast<float>(half_range(format_));
  std::vector<float> values(static_cast<size_t>(round_up(grouping_.size, 4)));
  int64_t faults = 0;
  for (int64_t g = 0; g < groups(); ++g) {
    const int64_t begin = g * grouping_.size, size = std::min(grouping_.size, cols_ - begin);
    for (int64_t r = 0; r < rows; ++r) {
      std::fill(values.begin(), values.end(), 0.0f);
      float extreme = 0.0f;
      for (int64_t i = 0; i < size; ++i) {
        const float value = values[static_cast<size_t>(i)] = element(source, (r * cols_) + begin + i, format);
        faults += !std::isfinite(value);
        if (std::fabs(value) > std::fabs(extreme)) extreme = value;
      }
      const float step = rounded(format_ == Format::int8 ? std::fabs(extreme) / 127.0f : extreme / -8.0f,
                                 grouping_.scales);
      const float inverse = std::isnormal(step) ? 1.0f / step : 0.0f;
      put_scale(panel, g, lane + r, inverse == 0.0f ? 0.0f : step);
      for (int64_t i = 0; i < size; i += 4) {
        uint8_t quad[4];
        for (int64_t j = 0; j < 4; ++j) quad[j] = whole(values[static_cast<size_t>(i + j)], inverse, range);
        put_quad(panel, format_, (begin + i) / 4, lane + r, quad);
      }
    }
  }
  return faults;
}

void Matrix::pack_whole(int64_t part, int64_t first, int64_t count, const void* source) {
  if (is_float(format_)) throw std::invalid_argument("the matrix holds floats");
  const int64_t words = (cols_ * (format_ == Format::int8 ? 8 : 4) + 31) / 32;
  each_panel(part, first, count, [&](uint8_t* panel, int64_t lane, int64_t rows, int64_t done) {
    for (int64_t r = 0; r < rows; ++r) {
      const uint8_t* row = static_cast<const uint8_t*>(source) + (done + r) * words * 4;
      for (int64_t i = 0; i < words; ++i) {
        uint32_t word;
        std::memcpy(&word, row + i * 4, 4);
        if (format_ == Format::int4) word = spread(word & 0xffffu) | spread(word >> 16) << 4;
        std::memcpy(panel + i * 64 + (lane + r) * 4, &word, 4);
      }
    }
  });
}

int64_t Matrix::pack_scales(int64_t part, int64_t first, int64_t count, const void* source, Format format) {
  if (is_float(format_)) throw std::invalid_argument("the matrix holds floats");
  int64_t faults = 0;
  each_panel(part, first, count, [&](uint8_t* panel, int64_t lane, int64_t rows, int64_t done) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t g = 0; g < groups(); ++g) {
        const float value = element(source, (done + r) * groups() + g, format);
        put_scale(panel, g, lane + r, value);
        faults += !std::isfinite(scale(panel, g, lane + r));
      }
  });
  return faults;
}

void Matrix::put_scale(uint8_t* panel, int64_t group, int64_t lane, float scale) const {
  uint8_t* at = panel + scales_at() + (group * kLanes + lane) * element_bytes(grouping_.scales);
  if (grouping_.scales == Format::float32) {
    std::memcpy(at, &scale, 4);
    return;
  }
  const uint16_t half = grouping_.scales == Format::bfloat16 ? to_bfloat16(scale) : to_float16(scale);
  std::memcpy(at, &half, 2);
}

float Matrix::scale(const uint8_t* panel, int64_t group, int64_t lane) const {
  return element(panel + scales_at(), group * kLanes + lane, grouping_.scales);
}

void Matrix::copy_row(int64_t row, float* out) const {
  const auto* from = static_cast<const uint8_t*>(panel(row / kLanes * parts_));
  const int64_t lane = row % kLanes;
  if (is_float(format_)) {
    const int64_t together = columns_together(format_);
    for (int64_t k = 0; k < cols_; ++k) out[k] = element(from, panel_index(k, lane, together), format_);
    return;
  }
  const bool narrow = format_ == Format::int4;
  for (int64_t g = 0; g < groups(); ++g) {
    const float step = scale(from, g, lane);
    for (int64_t k = g * grouping_.size; k < std::min(cols_, (g + 1) * grouping_.size); ++k) {
      const int byte = from[(narrow ? k / 8 : k / 4) * 64 + lane * 4 + k % 4];
      const int stored = narrow ? byte >> (k / 4 % 2 * 4) & 15 : byte;
      out[k] = static_cast<float>(stored - half_range(format_)) * step;
    }
  }
}

}  // namespace mindport
