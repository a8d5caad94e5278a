// Element types as they lie in memory, and the type in which kernels accumulate them.
#pragma once

#include <cstdint>
#include <cstring>

namespace sparse_ops {

struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

template <typename T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;

static inline double widen(double x) { return x; }
static inline float widen(float x) { return x; }
static inline float widen(Bfloat x) {
  const uint32_t u = static_cast<uint32_t>(x.bits) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
static inline float widen(Half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
  uint32_t u = magnitude << 13;
  float f;
  if (magnitude >= 0x7c00) {
    u |= 0x7f800000;
    std::memcpy(&f, &u, 4);
  } else {
    std::memcpy(&f, &u, 4);
    f *= 0x1p112f;  // moves the exponent from bias 15 to bias 127; right for subnormals too
  }
  std::memcpy(&u, &f, 4);
  u |= sign;
  std::memcpy(&f, &u, 4);
  return f;
}

// To the nearest, ties to even, as PyTorch rounds.
static inline void narrow(double x, double* to) { *to = x; }
static inline void narrow(float x, float* to) { *to = x; }
static inline void narrow(float x, Bfloat* to) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  to->bits = x != x ? 0x7fc0 : static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
static inline void narrow(float x, Half* to) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000);
  u &= 0x7fffffff;
  if (u > 0x7f800000) {
    to->bits = sign | 0x7e00;
  } else if (u >= 0x477ff000) {  // 65520 and more round to infinity
    to->bits = sign | 0x7c00;
  } else if (u < 0x38800000) {  // below 2^-14: subnormal, the addition of 1/2 rounds at 2^-24
    float f;
    std::memcpy(&f, &u, 4);
    f += 0.5f;
    std::memcpy(&u, &f, 4);
    to->bits = sign | static_cast<uint16_t>(u - 0x3f000000);
  } else {
    to->bits = sign | static_cast<uint16_t>((u - (112u << 23) + 0xfff + ((u >> 13) & 1)) >> 13);
  }
}

}  // namespace sparse_ops
