// A block of any floating type as float32 or float64; include it inside a body. n <= kWidenBlock.
#include "halves.h"

// buffer, or data itself where it is float32.
static inline const float* as_floats(const void* data, Float from, int64_t n, float* buffer) {
  switch (from) {
    case Float::float16: half_to_float(static_cast<const uint16_t*>(data), buffer, n); return buffer;
    case Float::bfloat16: bfloat16_to_float(static_cast<const uint16_t*>(data), buffer, n); return buffer;
    default: return static_cast<const float*>(data);
  }
}

// data as `to` (float32 or float64), written into buffer; data itself where nothing changes.
static inline const void* widen(const void* data, Float from, Float to, int64_t n, double* buffer) {
  if (from == to) return data;
  if (to == Float::float32) return as_floats(data, from, n, reinterpret_cast<float*>(buffer));
  float narrow[kWidenBlock];
  const float* source = as_floats(data, from, n, narrow);
  for (int64_t i = 0; i < n; ++i) buffer[i] = source[i];
  return buffer;
}
