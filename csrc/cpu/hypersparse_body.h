// HyperSparse over one chunk: its four sums, and the gradient of the penalty.
#include "simd.h"
#include "tanh.h"
#include "widen.h"

// s|w| in float32 for any s that float64 holds: the first factor keeps a large s from overflowing. Both are exact.
struct Scale {
  float first, second;
};

static inline Scale split_scale(double s) {
  const float first = s > 0x1p64 ? 0x1p64f : 1.0f;
  return {first, static_cast<float>(s / first)};
}

static inline void sum_floats(const float* w, int64_t n, double s, double* out) {
  const Scale scale = split_scale(s);
  const Vec first = set(scale.first), second = set(scale.second);
  Sum magnitudes, t0, t1, t2;
  clear(magnitudes), clear(t0), clear(t1), clear(t2);
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vec u = magnitude(i + kLanes <= n ? load(w + i) : load_first(w + i, n - i));
    Vec t, c;
    tanh_sech2(mul(mul(u, first), second), t, c);
    const Vec uc = mul(u, c);
    add(magnitudes, u);
    add(t0, t);
    add(t1, uc);
    add(t2, mul(mul(u, t), uc));
  }
  out[0] += total(magnitudes);
  out[1] += total(t0);
  out[2] += total(t1);
  out[3] += total(t2);
}

static inline void sum_doubles(const double* w, int64_t n, double s, double* out) {
  for (int64_t i = 0; i < n; ++i) {
    const double u = std::fabs(w[i]);
    double t, c;
    tanh_sech2(s * u, t, c);
    out[0] += u;
    out[1] += t;
    out[2] += u * c;
    out[3] += u * u * t * c;
  }
}

// Adds N, T0, T1, T2 of n weights to out.
static void hypersparse_chunk_sums(const void* w, Float type, int64_t n, double s, double* out) {
  if (type == Float::float64) return sum_doubles(static_cast<const double*>(w), n, s, out);
  if (type == Float::float32) return sum_floats(static_cast<const float*>(w), n, s, out);
  float buffer[kWidenBlock];
  for (int64_t i = 0; i < n; i += kWidenBlock) {
    const int64_t count = n - i < kWidenBlock ? n - i : kWidenBlock;
    sum_floats(as_floats(static_cast<const uint16_t*>(w) + i, type, count, buffer), count, s, out);
  }
}

static inline void float_grads(const float* w, int64_t n, double base, double strength, double s, float* grads) {
  const Scale scale = split_scale(s);
  const Vec first = set(scale.first), second = set(scale.second);
  const Vec a = set(static_cast<float>(base)), b = set(static_cast<float>(strength));
  for (int64_t i = 0; i < n; i += kLanes) {
    const bool whole = i + kLanes <= n;
    const Vec x = whole ? load(w + i) : load_first(w + i, n - i);
    Vec t, c;
    tanh_sech2(mul(mul(magnitude(x), first), second), t, c);
    const Vec grad = times_sign(fma(b, c, a), x);
    if (whole) {
      store(grads + i, grad);
    } else {
      store_first(grads + i, grad, n - i);
    }
  }
}

static inline void double_grads(const double* w, int64_t n, double base, double strength, double s, double* grads) {
  for (int64_t i = 0; i < n; ++i) {
    double t, c;
    tanh_sech2(s * std::fabs(w[i]), t, c);
    const double grad = base + strength * c;
    grads[i] = w[i] > 0 ? grad : w[i] < 0 ? -grad : w[i] == 0 ? 0 : w[i];
  }
}

// grads = sign(w) (base + strength sech^2(s |w|)).
static void hypersparse_chunk_grads(const void* w, Float type, int64_t n, double base, double strength, double s,
                                    void* grads) {
  if (type == Float::float64)
    return double_grads(static_cast<const double*>(w), n, base, strength, s, static_cast<double*>(grads));
  if (type == Float::float32)
    return float_grads(static_cast<const float*>(w), n, base, strength, s, static_cast<float*>(grads));
  float wide[kWidenBlock], wide_grads[kWidenBlock];
  for (int64_t i = 0; i < n; i += kWidenBlock) {
    const int64_t count = n - i < kWidenBlock ? n - i : kWidenBlock;
    const float* block = as_floats(static_cast<const uint16_t*>(w) + i, type, count, wide);
    float_grads(block, count, base, strength, s, wide_grads);
    uint16_t* to = static_cast<uint16_t*>(grads) + i;
    type == Float::float16 ? float_to_half(wide_grads, to, count) : float_to_bfloat16(wide_grads, to, count);
  }
}
