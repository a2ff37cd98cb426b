#include "matrix.h"

#include <algorithm>
#include <stdexcept>

namespace mindport {
namespace {

template <class From, class To, class Convert>
int64_t pack_block(const From* source, int64_t rows, int64_t cols, int64_t lane, To* panel, Convert convert) {
  int64_t faults = 0;
  constexpr int64_t kBlock = 64;  // columns at a time keep the block of the panel in the first-level cache
  for (int64_t k0 = 0; k0 < cols; k0 += kBlock) {
    const int64_t k1 = std::min(cols, k0 + kBlock);
    for (int64_t r = 0; r < rows; ++r) {
      const From* row = source + r * cols;
      To* out = panel + lane + r;
      for (int64_t k = k0; k < k1; ++k) out[k * kLanes] = convert(row[k], faults);
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
int64_t pack_any(const void* source, int64_t rows, int64_t cols, int64_t lane, void* panel, Format from, Format to) {
  const From* typed = static_cast<const From*>(source);
  if constexpr (sizeof(From) == sizeof(To)) {
    if (from == to) return pack_block(typed, rows, cols, lane, static_cast<To*>(panel), Plain{exponent_mask(from)});
  }
  return pack_block(typed, rows, cols, lane, static_cast<To*>(panel), Through<To>{from, to});
}

}  // namespace

Matrix::Matrix(int64_t rows, int64_t cols, int64_t parts, Format format)
    : rows_(rows), cols_(cols), parts_(parts), panels_(round_up(rows, kLanes) / kLanes * parts), format_(format) {
  if (rows <= 0 || cols <= 0 || parts <= 0) throw std::invalid_argument("a matrix needs positive dimensions");
  memory_ = Memory(static_cast<size_t>(panels_ * panel_elements() * element_bytes(format)));
}

int64_t Matrix::pack(int64_t part, int64_t first, int64_t count, const void* source, Format format) {
  if (part < 0 || part >= parts_ || first < 0 || count < 0 || first + count > rows_)
    throw std::out_of_range("rows to pack lie outside the matrix");
  int64_t faults = 0;
  for (int64_t row = first; row < first + count;) {
    const int64_t lane = row % kLanes;
    const int64_t rows = std::min(kLanes - lane, first + count - row);
    void* panel = const_cast<void*>(this->panel(row / kLanes * parts_ + part));
    const int64_t offset = (row - first) * cols_ * element_bytes(format);
    const void* from = static_cast<const uint8_t*>(source) + offset;
    const bool wide_from = format == Format::float32, wide_to = format_ == Format::float32;
    auto* pack = wide_from ? (wide_to ? pack_any<uint32_t, uint32_t> : pack_any<uint32_t, uint16_t>)
                           : (wide_to ? pack_any<uint16_t, uint32_t> : pack_any<uint16_t, uint16_t>);
    faults += pack(from, rows, cols_, lane, panel, format, format_);
    row += rows;
  }
  return faults;
}

void Matrix::copy_row(int64_t row, float* out) const {
  const void* from = panel(row / kLanes * parts_);
  for (int64_t k = 0; k < cols_; ++k) out[k] = element(from, k * kLanes + row % kLanes, format_);
}

}  // namespace mindport
