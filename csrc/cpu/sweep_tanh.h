// sech^2 for the penalty's gradient and tanh for the sums, of x = s|w| in registers; include it inside a body.
//
// Both are bound by arithmetic, and want different things. The gradient wants a good relative error far out, where weights
// that stay shall feel next to nothing: one exponential, 4e / (1 + e)^2 with e = exp(-2x), relative error below 6e-7 up to
// x = 1 and 1.2e-7 x beyond, 0 only where float32 ends. The sums want tanh itself, of small x too: x P(x^2) / Q(x^2), a
// minimax fit with a relative error of 5.3e-8 in float32 coefficients on [0, 9], where 1 - tanh is 3e-8. Neither
// branches, so that outliers cost nothing and a lane's value does not depend on its neighbours. NaN stays NaN.
//
// What counts is the length of the chain of dependent instructions, since the processor overlaps but three registers:
// hence polynomials in pairs (Estrin). Dividing is as fast as the estimate of the reciprocal with a step of Newton.

static constexpr float kTanhEnd = 9.0f;
static constexpr float kP1 = 0.13381025195121765f, kP2 = 0.003495588432997465f, kP3 = 2.0609088096534833e-05f,
                       kP4 = 1.3354669370357897e-08f;
static constexpr float kQ1 = 0.4671434164047241f, kQ2 = 0.025876984000205994f, kQ3 = 0.00032856353209353983f,
                       kQ4 = 7.776561687933281e-07f;

// 2^f on |f| <= 1/2, relative error 1.2e-7.
static constexpr float kE1 = 0.6931469440460205f, kE2 = 0.24022120237350464f, kE3 = 0.05550713464617729f,
                       kE4 = 0.009675538167357445f, kE5 = 0.001327644451521337f;

// factor * sech^2(x), where exponent = -2x / ln 2.
static inline F32::R times_sech2(F32::R factor, F32::R exponent) {
  using V = F32;
  const V::R one = V::set(1), y = V::larger(V::set(-160), exponent);
  const V::R n = V::round(y), f = V::sub(y, n), f2 = V::mul(f, f);
  const V::R high = V::fma(V::fma(V::set(kE5), f, V::set(kE4)), f2, V::fma(V::set(kE3), f, V::set(kE2)));
  const V::R e = V::times_power(V::fma(high, f2, V::fma(V::set(kE1), f, one)), n);
  const V::R inverse = V::div(one, V::add(one, e));
  return V::mul(V::mul(e, inverse), V::mul(V::mul(V::set(4), factor), inverse));
}
static inline F32::R tanh_of(F32::R x) {  // of x up to kTanhEnd
  using V = F32;
  const V::R one = V::set(1), z = V::mul(x, x), z2 = V::mul(z, z);
  const V::R p = V::fma(V::fma(V::set(kP4), z2, V::fma(V::set(kP3), z, V::set(kP2))), z2, V::fma(V::set(kP1), z, one));
  const V::R q = V::fma(V::fma(V::set(kQ4), z2, V::fma(V::set(kQ3), z, V::set(kQ2))), z2, V::fma(V::set(kQ1), z, one));
  return V::div(V::mul(x, p), q);
}
static inline F32::R short_of_end(F32::R x) { return F32::smaller(F32::set(kTanhEnd), x); }

// float64 takes the standard library's functions, lane by lane.
template <class F>
static inline F64::R each_lane(F64::R x, const F& f) {
  double xs[F64::W];
  F64::store(xs, x);
  for (int i = 0; i < F64::W; ++i) xs[i] = f(xs[i]);
  return F64::load(xs);
}
static inline F64::R times_sech2(F64::R factor, F64::R exponent) {
  const auto sech2 = [](double y) {
    const double e = std::exp2(y), inverse = 1 / (1 + e);
    return 4 * e * inverse * inverse;
  };
  return F64::mul(factor, each_lane(exponent, sech2));
}
static inline F64::R tanh_of(F64::R x) {
  return each_lane(x, [](double lane) { return std::tanh(lane); });
}
static inline F64::R short_of_end(F64::R x) { return F64::smaller(F64::set(400), x); }
