// Registers of floats and doubles under one set of names; include it inside a body.
//
// M is a set of lanes, D an accumulator in double. Loads and stores with a count touch the first lanes alone and give 0
// in the others, so that tails run the code of whole registers.

static inline float widen_bf16(uint16_t h) {
  const uint32_t bits = static_cast<uint32_t>(h) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

static inline uint16_t narrow_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#if SPARSE_OPS_SCALAR

static inline float widen_f16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, magnitude = h & 0x7fff;
  uint32_t bits;
  if (magnitude >= 0x7c00) {
    bits = 0x7f800000u | (magnitude & 0x3ff) << 13;
  } else if (magnitude >= 0x400) {
    bits = (magnitude << 13) + (112u << 23);
  } else {  // a denormal is magnitude * 2^-24
    const float value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    std::memcpy(&bits, &value, 4);
  }
  bits |= sign;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

static inline uint16_t narrow_f16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return sign | 0x7e00;
  if (bits >= 0x477ff000u) return sign | 0x7c00;  // 65520 rounds to infinity
  if (bits < 0x38800000u) {                       // a denormal: adding 0.5 aligns its last bit with float32's
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, 4);
    return sign | static_cast<uint16_t>(bits - 0x3f000000u);
  }
  return sign | static_cast<uint16_t>((bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13);
}

template <typename Float>
struct Vec {
  using T = Float;
  using R = Float;
  using M = bool;
  using D = double;
  static constexpr int W = 1;
  static R load(const T* p) { return *p; }
  static R load(const T* p, int) { return *p; }
  static void store(T* p, R x) { *p = x; }
  static void store(T* p, R x, int) { *p = x; }
  static R set(double x) { return static_cast<T>(x); }
  static D zero() { return 0; }
  static M bits(const uint8_t* packed, int64_t i, int) { return packed[i >> 3] >> (i & 7) & 1; }
  static R kept(M m, R a) { return m ? a : 0; }
  static M first(int) { return true; }
  static R add(R a, R b) { return a + b; }
  static R sub(R a, R b) { return a - b; }
  static R mul(R a, R b) { return a * b; }
  static R div(R a, R b) { return a / b; }
  static R fma(R a, R b, R c) { return a * b + c; }
  static R fnma(R a, R b, R c) { return c - a * b; }
  static R sqrt(R a) { return std::sqrt(a); }
  static R max(R a, R b) { return a != a || a > b ? a : b; }  // a NaN on either side stays
  static R larger(R a, R b) { return a > b ? a : b; }  // b where it is a NaN
  static R smaller(R a, R b) { return a < b ? a : b; }
  static R abs(R a) { return std::fabs(a); }
  static R select(M m, R a, R b) { return m ? a : b; }
  static M nonzero(R a) { return a != 0; }
  static M at_least(R a, R b) { return a >= b; }
  static M both(M a, M b) { return a && b; }
  static M without(M a, M b) { return a && !b; }
  static R round(R a) { return (a + T(12582912)) - T(12582912); }  // 1.5 * 2^23, for float32 below 2^22
  static R power(R n) {  // 2^n of integers n >= -126
    const int32_t bits = (n == n ? static_cast<int32_t>(n) + 127 : 0) << 23;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  }
  static R times_power(R a, R n) {
    const R normal = n < -126 ? -126 : n;
    return a * power(normal) * power(n - normal);
  }
  static R with_sign_of(R a, R b) { return std::signbit(b) ? -a : a; }
  static int count(M m) { return m; }
  static int count(M a, M b) { return a + b; }
  static bool any(M a, M b) { return a || b; }
  static int compress(T* out, M m, R x) {
    *out = x;
    return m;
  }
  static void accumulate(D& sum, R x) { sum += x; }
  static double total(D sum) { return sum; }
};
using F32 = Vec<float>;
using F64 = Vec<double>;

static inline float rounded(float x, Kind kind) {
  if (kind == Kind::bf16) return widen_bf16(narrow_bf16(x));
  if (kind == Kind::f16) return widen_f16(narrow_f16(x));
  return x;
}
static inline double rounded(double x, Kind) { return x; }

#else  // SPARSE_OPS_AVX2 or SPARSE_OPS_AVX512

static inline float widen_f16(uint16_t h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h))); }
static inline uint16_t narrow_f16(float x) {
  return static_cast<uint16_t>(_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT)));
}
#if SPARSE_OPS_AVX512
#include "sweep_avx512.h"
#else
#include "sweep_avx2.h"
#endif

#endif
