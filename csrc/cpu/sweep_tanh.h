// sech^2 for the penalty's gradient and tanh for the sums, of |w| in registers; include it inside a body.
//
// The gradient wants a good relative error far out, where weights that stay shall feel next to nothing: one
// exponential, 4e / (1 + e)^2 with e = exp(-2x), relative error below 6e-7 up to x = 1 and 3.5e-7 x beyond (AVX-512
// 3.1e-7 x), 0 only where float32 ends. The sums want tanh itself, of small x too, to 1e-7. Nothing branches, so that
// outliers cost nothing and a lane's value does not depend on its neighbours. NaN stays NaN in the weights and in N.

static constexpr double kExponent = -2.8853900817779268;  // -2 / ln 2: exp(-2x) = 2^(kExponent x)

#if SPARSE_OPS_AVX512
// What counts is the number of instructions: two of 512 bits begin in a cycle, and no more than 1.5 do in these loops.
// So the exponential takes 2^(j/32) from a table in two registers and a cubic on |f| <= 1/64, relative error 4e-10, and
// tanh = (1 - e) / (1 + e) with 1 - e free of cancellation. The table's index is what is left of y in the last bits of
// a sum. Divisions are quicker than estimates: these need three more instructions, and the divider works on its own.
alignas(64) static constexpr float kPowers[32] = {
    1.0f, 1.0218972f, 1.0442737f, 1.0671405f, 1.0905077f, 1.1143868f, 1.1387886f, 1.1637249f,
    1.1892071f, 1.2152474f, 1.2418578f, 1.269051f, 1.2968396f, 1.3252367f, 1.3542556f, 1.38391f,
    1.4142135f, 1.4451808f, 1.4768262f, 1.5091645f, 1.5422108f, 1.5759809f, 1.6104903f, 1.6457555f,
    1.6817929f, 1.7186193f, 1.7562522f, 1.7947091f, 1.8340081f, 1.8741677f, 1.9152066f, 1.9571441f};
static constexpr float kR1 = 0.6931471824645996f, kR2 = 0.24022826552391052f, kR3 = 0.05550443381071091f;
static constexpr float kQ1 = 0.69315733f, kQ2 = 0.24022651f;

static constexpr double kUnit = kExponent;

struct Power {  // 2^y = scale + scale * rest, of y <= 0
  __m512 scale, rest;
};
static inline Power power_of(__m512 y) {
  using V = F32;
  const __m512 shift = V::set(393216), shifted = V::add(shift, y);  // 1.5 * 2^18, whose last bit is 1/32
  const __m512 n = V::sub(shifted, shift), f = V::sub(y, n);
  const __m512 j = _mm512_permutex2var_ps(_mm512_load_ps(kPowers), _mm512_castps_si512(shifted),
                                          _mm512_load_ps(kPowers + 16));
  return {_mm512_scalef_ps(j, n), V::mul(f, V::fma(V::fma(V::set(kR3), f, V::set(kR2)), f, V::set(kR1)))};
}
static inline __m512 short_of_end(__m512 y) {  // 2^-160 is 0; compared as integers, which is cheaper
  return _mm512_castsi512_ps(_mm512_min_epu32(_mm512_castps_si512(y), _mm512_castps_si512(F32::set(-160))));
}
static inline __m512 tanh_of(__m512 y) {
  using V = F32;
  const Power power = power_of(y);
  const __m512 m = V::fnma(power.scale, power.rest, V::sub(V::set(1), power.scale));  // 1 - 2^y
  return V::div(m, V::sub(V::set(2), m));
}
// g + sign(w) * factor * sech^2(x), where s u = -2x / ln 2 and u = |w|; g where w is 0. Relative error of this
// exponential, a quadratic, 5.4e-8.
static inline __m512 plus_sech2(__m512 g, __m512 w, __m512 factor, __m512 s, __m512 u) {
  using V = F32;
  const __m512 end = V::smaller(V::div(V::set(-160), s), V::set(3e38)), shift = V::set(393216);
  u = _mm512_castsi512_ps(_mm512_min_epu32(_mm512_castps_si512(u), _mm512_castps_si512(end)));
  const __m512 shifted = V::fma(s, u, shift), n = V::sub(shifted, shift), f = _mm512_fmsub_ps(s, u, n);
  const __m512 j = _mm512_permutex2var_ps(_mm512_load_ps(kPowers), _mm512_castps_si512(shifted),
                                          _mm512_load_ps(kPowers + 16));
  const __m512 scale = _mm512_scalef_ps(j, n), rest = V::mul(f, V::fma(V::set(kQ2), f, V::set(kQ1)));
  const __m512 e = V::fma(scale, rest, scale), d = V::add(V::set(1), e), sech2 = V::div(e, V::mul(d, d));
  const __m512i full = _mm512_castps_si512(V::mul(V::set(4), factor)), bits = _mm512_castps_si512(w);
  const __m512i pull = _mm512_ternarylogic_epi32(full, bits, _mm512_castps_si512(V::set(-0.0)), 0x78);  // a ^ (b & c)
  return _mm512_mask3_fmadd_ps(_mm512_castsi512_ps(pull), sech2, g, V::nonzero(w));
}
#else
// Here tanh is x P(x^2) / Q(x^2), a minimax fit with a relative error of 5.3e-8 in float32 coefficients on [0, 9],
// where 1 - tanh is 3e-8. Polynomials go in pairs (Estrin), for a short chain of dependent instructions.
static constexpr double kUnit = 1;
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
static inline F32::R plus_sech2(F32::R g, F32::R w, F32::R factor, F32::R s, F32::R u) {
  const auto added = F32::add(g, F32::with_sign_of(times_sech2(factor, F32::mul(s, u)), w));
  return F32::select(F32::nonzero(w), added, g);
}
#endif

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
static inline F64::R plus_sech2(F64::R g, F64::R w, F64::R factor, F64::R s, F64::R u) {
  const auto added = F64::add(g, F64::with_sign_of(times_sech2(factor, F64::mul(s, u)), w));
  return F64::select(F64::nonzero(w), added, g);
}
