// The four floating types that kernels take.
#pragma once

#include "../common.h"

namespace sparse_ops {

enum class Float { float16, bfloat16, float32, float64 };

inline Float float_type(ScalarType type) {
  switch (type) {
    case ScalarType::Half: return Float::float16;
    case ScalarType::BFloat16: return Float::bfloat16;
    case ScalarType::Double: return Float::float64;
    default: return Float::float32;
  }
}

inline int64_t size_of(Float type) {
  return type == Float::float64 ? 8 : type == Float::float32 ? 4 : 2;
}

// How many elements cpu/widen.h converts at once: 16 KiB of float64 stay in the first-level cache.
constexpr int64_t kWidenBlock = 2048;

// The bits of infinity: greater magnitudes are NaN.
inline uint64_t infinity_bits(Float type) {
  switch (type) {
    case Float::float16: return 0x7c00;
    case Float::bfloat16: return 0x7f80;
    case Float::float32: return 0x7f800000;
    default: return 0x7ff0000000000000;
  }
}

}  // namespace sparse_ops
