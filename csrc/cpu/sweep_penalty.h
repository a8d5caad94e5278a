// Operands of any kind as blocks of float or double, and the penalty's gradient; include it inside a body.

#include "sweep_vec.h"
#include "sweep_tanh.h"

// Elements updated, then summed: up to five streams of 1 KB, and those ahead, stay in L1.
static constexpr int kBlock = 256;

template <typename T>
static T widened(const void* data, Kind kind, int64_t i) {
  switch (kind) {
    case Kind::f32: return static_cast<T>(static_cast<const float*>(data)[i]);
    case Kind::f64: return static_cast<T>(static_cast<const double*>(data)[i]);
    case Kind::f16: return static_cast<T>(widen_f16(static_cast<const uint16_t*>(data)[i]));
    default: return static_cast<T>(widen_bf16(static_cast<const uint16_t*>(data)[i]));
  }
}

template <typename T>
static constexpr Kind kind_of() {
  return sizeof(T) == 4 ? Kind::f32 : Kind::f64;
}

// The operand as T from element i on: in place where it is T already, else converted into the buffer.
template <typename T>
static T* opened(const Operand& operand, int64_t i, int64_t n, T* buffer) {
  if (operand.kind == kind_of<T>()) return static_cast<T*>(operand.data) + i;
  for (int64_t j = 0; j < n; ++j) buffer[j] = widened<T>(operand.data, operand.kind, i + j);
  return buffer;
}

// Rounds the buffer back into the operand, once and to nearest even.
template <typename T>
static void closed(const Operand& operand, int64_t i, int64_t n, const T* buffer) {
  if (operand.kind == kind_of<T>()) return;
  for (int64_t j = 0; j < n; ++j) switch (operand.kind) {
      case Kind::f32: static_cast<float*>(operand.data)[i + j] = static_cast<float>(buffer[j]); break;
      case Kind::f64: static_cast<double*>(operand.data)[i + j] = static_cast<double>(buffer[j]); break;
      case Kind::f16: static_cast<uint16_t*>(operand.data)[i + j] = narrow_f16(static_cast<float>(buffer[j])); break;
      default: static_cast<uint16_t*>(operand.data)[i + j] = narrow_bf16(static_cast<float>(buffer[j])); break;
    }
}

// Steep scales, of subnormal thresholds, leave the format times 2 / ln 2: they are divided by a power of two, by which
// |w| is multiplied.
constexpr double kSteep = 1e38, kSteepFactor = 16;

static inline bool is_steep(const SweepScope& scope) { return scope.s > kSteep; }
static inline double scale_of(const SweepScope& scope) { return scope.s / (is_steep(scope) ? kSteepFactor : 1); }
static inline double exponent_scale(const SweepScope& scope) { return scale_of(scope) * kExponent; }

// What tanh_of takes is |w| times the scale and this.
template <class V>
static constexpr double unit_of() {
  return sizeof(typename V::T) == 4 ? kUnit : 1;
}

// g + penalty'(w). `on` is the penalty's full factor at bit 1, `off` at bit 0; `s` is the exponent_scale.
template <class V, Penalty P>
static inline typename V::R penalised(typename V::R g, typename V::R w, typename V::R on, typename V::R off,
                                      typename V::R s, bool steep, typename V::M group) {
  using R = typename V::R;
  if (P == Penalty::sign) return V::select(V::nonzero(w), V::add(g, V::with_sign_of(on, w)), g);
  if (P == Penalty::linear) return V::fma(V::select(group, on, off), w, g);
  if (P == Penalty::hypersparse) {
    R u = V::abs(w);
    if (__builtin_expect(steep, 0)) u = V::mul(u, V::set(kSteepFactor));
    return plus_sech2(g, w, on, s, u);
  }
  return g;
}
