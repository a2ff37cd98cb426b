// Many rows with VNNI: weights of four bits become bytes, too.
#pragma once

#include "form_bytes.h"
#include "spread.h"

namespace mindport {
namespace {

struct NibbleForm : ByteForm {
  static constexpr void (*weights)(const uint8_t*, int64_t, uint8_t*) = spread_nibbles;
};

}  // namespace
}  // namespace mindport
