// The sweep over one chunk of one weight: penalty, the optimiser's rule, mask, and the sums over the new weights.
//
// float32 weights (and halves, through blocks converted to float32) and float64 weights run the same template. Halves
// are rounded to nearest even before the sums, which are over the weights as they are stored.

#include "sweep_penalty.h"
#include "sweep_moments.h"

template <class V>
struct Sums {  // without initialisers: an implicit constructor is compiled for the plainest instruction set
  typename V::D n, t0, t1, t2;
  int64_t above, count;
};

constexpr int kTerms = 32;  // registers that one call adds up

// A sum of kTerms terms, in the registers' own precision and exact to twice that: adding in float64 takes two
// conversions a register. `whole` starts so high that it stays above every term and between half of the start and its
// double, so that what it loses of a term is exactly (before - after) + term, and its distance from the start is exact
// too.
template <class V, int kStart>
struct Compensated {
  typename V::R whole, lost;
  void clear() {
    whole = V::set(kStart);
    lost = V::set(0);
  }
  void add(typename V::R term) {
    const auto sum = V::add(whole, term);
    lost = V::add(lost, V::add(V::sub(whole, sum), term));
    whole = sum;
  }
  void join(typename V::D& total) const {
    V::accumulate(total, V::sub(whole, V::set(kStart)));
    V::accumulate(total, lost);
  }
};

// Adds the new weights of a block to the sums. With x = s|w| these are, of tanh x, of x sech^2 x, and of x^2 tanh x
// sech^2 x, x in units of unit_of: the terms of the first lie in [0, 1], of the second in [-1.3, 0.5]. Meanwhile
// `ahead`, what the next block updates, is fetched into the first cache. Not inlined: its constants fill half of the
// registers.
template <class V, bool kCurved, int kAhead>
__attribute__((noinline)) static void observe_block(const typename V::T* w, int64_t n, const SweepScope& scope,
                                                    Sums<V>& sums, typename V::T* candidates,
                                                    typename V::T* const* ahead) {
  using R = typename V::R;
  const bool steep = is_steep(scope);
  const R s = V::set(scale_of(scope) * unit_of<V>()), low = V::set(scope.low), high = V::set(scope.high);
  Compensated<V, 32> t0;
  Compensated<V, 96> t1;
  t0.clear();
  t1.clear();
  R t2 = V::set(0);  // meets only the square of ds/s: its own precision will do
  auto magnitudes = sums.n;
  int64_t count = sums.count, above_count = sums.above;
  const auto add = [&](R u) {
    V::accumulate(magnitudes, u);
    if (kCurved) {
      const R x = short_of_end(V::mul(s, __builtin_expect(steep, 0) ? V::mul(u, V::set(kSteepFactor)) : u));
      const R t = tanh_of(x), xt = V::mul(x, t), xc = V::fnma(xt, t, x);
      t0.add(t);
      t1.add(xc);
      t2 = V::fma(xt, xc, t2);
    }
  };
  int64_t i = 0;
  for (; i + 2 * V::W <= n; i += 2 * V::W) {
    for (int k = 0; k < kAhead; ++k) {
      __builtin_prefetch(ahead[k] + i);
      __builtin_prefetch(ahead[k] + i + V::W);
    }
    const R u = V::abs(V::load(w + i)), v = V::abs(V::load(w + i + V::W));
    add(u);
    add(v);
    const auto u_above = V::at_least(u, high), v_above = V::at_least(v, high);
    const auto u_inside = V::without(V::at_least(u, low), u_above), v_inside = V::without(V::at_least(v, low), v_above);
    above_count += V::count(u_above, v_above);
    if (V::any(u_inside, v_inside)) {
      count += V::compress(candidates + count, u_inside, u);
      count += V::compress(candidates + count, v_inside, v);
    }
  }
  for (; i < n; i += V::W) {
    const int lanes = n - i < V::W ? static_cast<int>(n - i) : V::W;  // of the others u is 0
    const R u = V::abs(V::load(w + i, lanes));
    add(u);
    const auto valid = V::first(lanes), above = V::both(valid, V::at_least(u, high));
    above_count += V::count(above);
    count += V::compress(candidates + count, V::without(V::both(valid, V::at_least(u, low)), above), u);
  }
  sums.count = count;
  sums.above = above_count;
  sums.n = magnitudes;
  if (kCurved) {
    t0.join(sums.t0);
    t1.join(sums.t1);
    V::accumulate(sums.t2, t2);
  }
}

// The rules: S states, and the new weight from the weight, the gradient and the states, which are updated.
template <class V>
struct Observe {
  static constexpr int S = 0;
  static constexpr bool kUpdates = false, kDecoupled = true, kUsual = false;
  explicit Observe(const SweepRule&) {}
  typename V::R operator()(typename V::R w, typename V::R, typename V::R*) const { return w; }
};

template <class V, int kStates>
struct Sgd {
  using R = typename V::R;
  static constexpr int S = kStates;
  static constexpr bool kUpdates = true, kDecoupled = false, kUsual = false;
  R lr, momentum, fresh;
  bool nesterov, first_step;
  explicit Sgd(const SweepRule& rule)
      : lr(V::set(rule.lr)), momentum(V::set(rule.momentum)), fresh(V::set(1 - rule.dampening)),
        nesterov(rule.nesterov), first_step(rule.first_step) {}
  R operator()(R w, R g, R* states) const {
    if (S > 0) {
      states[0] = first_step ? g : V::fma(momentum, states[0], V::mul(fresh, g));
      g = nesterov ? V::fma(momentum, states[0], g) : states[0];
    }
    return V::fnma(lr, g, w);
  }
};

// The usual case: weight decay and momentum, without a question in the loop.
template <class V>
struct Momentum {
  using R = typename V::R;
  static constexpr int S = 1;
  static constexpr bool kUpdates = true, kDecoupled = false, kUsual = true;
  R lr, momentum;
  explicit Momentum(const SweepRule& rule) : lr(V::set(rule.lr)), momentum(V::set(rule.momentum)) {}
  static bool suits(const SweepRule& rule) {
    return rule.weight_decay != 0 && rule.dampening == 0 && !rule.nesterov && !rule.first_step && !rule.scaled &&
           !rule.maximize;
  }
  R operator()(R w, R g, R* states) const {
    states[0] = V::fma(momentum, states[0], g);
    return V::fnma(lr, states[0], w);
  }
};

template <class V, int kStates>
struct AdamW {
  using R = typename V::R;
  static constexpr int S = kStates;  // 3: amsgrad
  static constexpr bool kUpdates = true, kDecoupled = true, kUsual = false;
  R beta1, fresh1, beta2, fresh2, shrink, step_size, correction, eps;
  explicit AdamW(const SweepRule& rule)
      : beta1(V::set(rule.beta1)), fresh1(V::set(1 - rule.beta1)), beta2(V::set(rule.beta2)),
        fresh2(V::set(1 - rule.beta2)), shrink(V::set(rule.lr * rule.weight_decay)), step_size(V::set(rule.step_size)),
        correction(V::set(rule.correction)), eps(V::set(rule.eps)) {}
  R operator()(R w, R g, R* states) const {
    states[0] = V::fma(beta1, states[0], V::mul(fresh1, g));
    states[1] = V::fma(beta2, states[1], V::mul(V::mul(fresh2, g), g));
    if (S == 3) states[2] = V::max(states[2], states[1]);
    const R denominator = V::fma(V::sqrt(states[S - 1]), correction, eps);
    return V::fnma(step_size, V::div(states[0], denominator), V::fnma(shrink, w, w));
  }
};

struct Whole {
  static constexpr bool value = true;
};
struct Part {
  static constexpr bool value = false;
};

template <class V, class Rule, Penalty P>
static void sweep_as(const SweepChunk& chunk, const SweepRule& settings, const SweepScope* scope, SweepSums& out,
                     typename V::T* candidates) {
  using T = typename V::T;
  using R = typename V::R;
  constexpr int S = Rule::S, kStates = S > 0 ? S : 1;
  const Rule rule(settings);
  const SweepScope line = scope == nullptr ? SweepScope{} : *scope;
  const bool curved = line.s != 0, steep = is_steep(line);
  const bool scaled = settings.scaled, maximize = settings.maximize, unusual = scaled || maximize;
  const bool decay = settings.weight_decay != 0 && !Rule::kDecoupled, writes = Rule::kUpdates || chunk.mask != nullptr;
  const R s = V::set(exponent_scale(line)), zero = V::set(0);
  const R on = V::set(line.on), off = V::set(line.off);
  const R grad_scale = V::set(settings.grad_scale), weight_decay = V::set(settings.weight_decay);
  Sums<V> sums;
  sums.n = sums.t0 = sums.t1 = sums.t2 = V::zero();
  sums.above = sums.count = 0;
  const bool halves = chunk.w.kind == Kind::f16 || chunk.w.kind == Kind::bf16;
  T w_buffer[kBlock], g_buffer[kBlock], state_buffers[kStates][kBlock];
  Moments<V> moments(line);
  const bool near = curved && Moments<V>::suit(line);
  const auto observe_far = [&](int64_t n) {
    for (int64_t k = 0; k < n; k += kTerms * V::W) {
      const int64_t some = n - k < kTerms * V::W ? n - k : kTerms * V::W;
      observe_block<V, true, 0>(moments.far() + k, some, line, sums, candidates, nullptr);
    }
    moments.drop(n);
  };

  for (int64_t start = 0; start < chunk.n; start += kBlock) {
    const int64_t n = chunk.n - start < kBlock ? chunk.n - start : kBlock;
    T* w_ptr = opened<T>(chunk.w, start, n, w_buffer);
    const T* g_ptr = Rule::kUpdates ? opened<T>(chunk.g, start, n, g_buffer) : nullptr;
    T* state_ptrs[kStates];
    for (int k = 0; k < S; ++k) state_ptrs[k] = opened<T>(chunk.states[k], start, n, state_buffers[k]);

    const auto step = [&](int64_t i, int lanes, auto extent) {
      constexpr bool kWhole = decltype(extent)::value;
      const auto read = [&](const T* p) { return kWhole ? V::load(p + i) : V::load(p + i, lanes); };
      const auto write = [&](T* p, R x) { kWhole ? V::store(p + i, x) : V::store(p + i, x, lanes); };
      R w = read(w_ptr), states[kStates];
      if (Rule::kUpdates) {
        R g = read(g_ptr);
        for (int k = 0; k < S; ++k) states[k] = read(state_ptrs[k]);
        if (!Rule::kUsual && __builtin_expect(unusual, 0)) {
          if (scaled) g = V::div(g, grad_scale);
          if (maximize) g = V::sub(zero, g);
        }
        if (Rule::kUsual || decay) g = V::fma(weight_decay, w, g);
        const auto group = P != Penalty::linear || chunk.group == nullptr ? V::nonzero(zero)
                                                                          : V::bits(chunk.group, start + i, lanes);
        w = rule(w, penalised<V, P>(g, w, on, off, s, steep, group), states);
      }
      if (chunk.mask != nullptr) {
        const auto keep = V::bits(chunk.mask, start + i, lanes);
        w = V::kept(keep, w);
        for (int k = 0; k < S; ++k) states[k] = V::kept(keep, states[k]);
      }
      if (writes) write(w_ptr, w);
      for (int k = 0; k < S; ++k) write(state_ptrs[k], states[k]);
    };
    int64_t i = 0;
#pragma GCC unroll 2
    for (; i + V::W <= n; i += V::W) step(i, V::W, Whole{});
    if (i < n) step(i, static_cast<int>(n - i), Part{});
    if (Rule::kUpdates && halves)
      for (i = 0; i < n; i += V::W) V::store(w_ptr + i, rounded(V::load(w_ptr + i), chunk.w.kind));
    // A loop of its own: update and sums in one are a chain too long for the processor to overlap two registers.
    if (scope != nullptr) {
      T* ahead[S + 2] = {w_ptr + kBlock, const_cast<T*>(g_ptr) + kBlock};
      for (int k = 0; k < S; ++k) ahead[2 + k] = state_ptrs[k] + kBlock;
      constexpr int kAhead = Rule::kUpdates ? S + 2 : 0;
      if (chunk.mask != nullptr) __builtin_prefetch(chunk.mask + (start + 2 * kBlock) / 8);
      for (int64_t k = 0; k < n; k += kTerms * V::W) {
        const int64_t some = n - k < kTerms * V::W ? n - k : kTerms * V::W;
        if (near) {
          moments.template add<kAhead>(w_ptr + k, some, ahead);
          if (moments.far_count >= kBlock) observe_far(kBlock);
        } else if (curved) {
          observe_block<V, true, kAhead>(w_ptr + k, some, line, sums, candidates, ahead);
        } else {
          observe_block<V, false, kAhead>(w_ptr + k, some, line, sums, candidates, ahead);
        }
        for (T*& operand : ahead) operand += some;
      }
    }

    if (writes) closed<T>(chunk.w, start, n, w_ptr);
    for (int k = 0; k < S; ++k) closed<T>(chunk.states[k], start, n, state_ptrs[k]);
  }
  if (near) observe_far(moments.far_count);
  // The loops took the scale as a T: of A at the scale itself t0 is the value there and t1 the slope.
  const double scale = scale_of(line) * unit_of<V>(), taken = static_cast<T>(scale);
  const double per_s = curved ? 1 / (taken * (steep ? kSteepFactor : 1)) : 0, t1 = V::total(sums.t1);
  const double t0 = curved ? V::total(sums.t0) + (scale / taken - 1) * t1 / unit_of<V>() : 0;
  out = {V::total(sums.n), t0, t1 * per_s, V::total(sums.t2) * per_s * per_s, sums.above, sums.count};
  if (near) moments.join(out, line.s);
}

template <class V, class Rule>
static void sweep_with(const SweepChunk& chunk, const SweepRule& rule, const SweepScope* scope, SweepSums& out,
                       void* candidates) {
  auto* buffer = static_cast<typename V::T*>(candidates);
  const bool idle = scope == nullptr || (rule.penalty != Penalty::linear && scope->on == 0);
  switch (idle ? Penalty::none : rule.penalty) {
    case Penalty::none: return sweep_as<V, Rule, Penalty::none>(chunk, rule, scope, out, buffer);
    case Penalty::sign: return sweep_as<V, Rule, Penalty::sign>(chunk, rule, scope, out, buffer);
    case Penalty::linear: return sweep_as<V, Rule, Penalty::linear>(chunk, rule, scope, out, buffer);
    case Penalty::hypersparse: return sweep_as<V, Rule, Penalty::hypersparse>(chunk, rule, scope, out, buffer);
  }
}

template <class V>
static void sweep_in(const SweepChunk& chunk, const SweepRule& rule, const SweepScope* scope, SweepSums& out,
                     void* candidates) {
  switch (rule.kind) {
    case RuleKind::observe:
      return sweep_as<V, Observe<V>, Penalty::none>(chunk, rule, scope, out, static_cast<typename V::T*>(candidates));
    case RuleKind::sgd: return sweep_with<V, Sgd<V, 0>>(chunk, rule, scope, out, candidates);
    case RuleKind::momentum:
      if (Momentum<V>::suits(rule)) return sweep_with<V, Momentum<V>>(chunk, rule, scope, out, candidates);
      return sweep_with<V, Sgd<V, 1>>(chunk, rule, scope, out, candidates);
    case RuleKind::adamw: return sweep_with<V, AdamW<V, 2>>(chunk, rule, scope, out, candidates);
    case RuleKind::amsgrad: return sweep_with<V, AdamW<V, 3>>(chunk, rule, scope, out, candidates);
  }
}

// scope: null without penalty and statistics. candidates: room for the chunk and one register more.
static void sweep_chunk(const SweepChunk& chunk, const SweepRule& rule, const SweepScope* scope, SweepSums& out,
                        void* candidates) {
  if (chunk.w.kind == Kind::f64) return sweep_in<F64>(chunk, rule, scope, out, candidates);
  return sweep_in<F32>(chunk, rule, scope, out, candidates);
}
