// gradient + grad_scale * penalty'(w) over one chunk of one weight.

#include "sweep_penalty.h"

template <class V, Penalty P>
static void add_penalty_as(const SweepChunk& chunk, const SweepScope& scope, double grad_scale) {
  using T = typename V::T;
  using R = typename V::R;
  const R on = V::set(scope.on), off = V::set(scope.off), s = V::set(exponent_scale(scope)), scale = V::set(grad_scale);
  const R zero = V::set(0);
  const bool steep = is_steep(scope);
  T w_buffer[kBlock], g_buffer[kBlock];
  for (int64_t start = 0; start < chunk.n; start += kBlock) {
    const int64_t n = chunk.n - start < kBlock ? chunk.n - start : kBlock;
    const T* w_ptr = opened<T>(chunk.w, start, n, w_buffer);
    T* g_ptr = opened<T>(chunk.g, start, n, g_buffer);
    for (int64_t i = 0; i < n; i += V::W) {
      const int lanes = n - i < V::W ? static_cast<int>(n - i) : V::W;
      const R w = V::load(w_ptr + i, lanes), g = V::load(g_ptr + i, lanes);
      const auto group = P != Penalty::linear || chunk.group == nullptr ? V::nonzero(zero)
                                                                        : V::bits(chunk.group, start + i, lanes);
      V::store(g_ptr + i, V::fma(scale, penalised<V, P>(zero, w, on, off, s, steep, group), g), lanes);
    }
    closed<T>(chunk.g, start, n, g_ptr);
  }
}

template <class V>
static void add_penalty_in(const SweepChunk& chunk, Penalty penalty, const SweepScope& scope, double grad_scale) {
  switch (penalty) {
    case Penalty::none: return;
    case Penalty::sign: return add_penalty_as<V, Penalty::sign>(chunk, scope, grad_scale);
    case Penalty::linear: return add_penalty_as<V, Penalty::linear>(chunk, scope, grad_scale);
    case Penalty::hypersparse: return add_penalty_as<V, Penalty::hypersparse>(chunk, scope, grad_scale);
  }
}

static void add_penalty_chunk(const SweepChunk& chunk, Penalty penalty, const SweepScope& scope, double grad_scale) {
  if (chunk.w.kind == Kind::f64) return add_penalty_in<F64>(chunk, penalty, scope, grad_scale);
  return add_penalty_in<F32>(chunk, penalty, scope, grad_scale);
}
