// x Phi(x) by the normal distribution function, for float vectors of any width; included by bodies.

// Phi(-a) = t 2^(P(t) - a^2 log2(e) / 2) with t = 1 / (1 + 0.395 a): P is the minimax polynomial of degree 8 over a <=
// 13.3 (6.6e-8), the rest of the exponent goes by another of degree 5 (7.5e-8), so that the tail of negative x keeps its
// digits: in all the result errs by at most 7e-7 + 2^-23 x^2 of itself. 1.0 ns an element in pairs of vectors, one thread
// of a Zen 3 beside other programs; the approximation of degree 9 in the exponent of e took 1.5, torch's by erf 1.45.
template <typename V>
static inline V gelu_of(V x) {
  using Integers = decltype(V{} < V{});
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the lowest bits
  V a = x < 0.0f ? -x : x;
  a = a > 64.0f ? V{} + 64.0f : a;  // of an infinite one t would be 0
  const V t = 1.0f / (a * 0.395f + 1.0f);
  V p = t * 2.694313703e-01f - 1.403358194e+00f;
  p = p * t + 2.864374513e+00f;
  p = p * t - 2.664773294e+00f;
  p = p * t + 9.045717794e-01f;
  p = p * t - 2.944955852e-01f;
  p = p * t + 5.525319209e-01f;
  p = p * t + 1.437324938e+00f;
  p = p * t - 2.665607353e+00f;
  V exponent = p - (a * 0.72134752f) * a;
  exponent = exponent < -127.0f ? V{} - 127.0f : exponent;  // 2^-127 is 0 here
  const V shifted = exponent + kRound, rest = exponent - (shifted - kRound);
  V q = rest * 1.327647178e-03f + 9.675541333e-03f;
  q = q * rest + 5.550713274e-02f;
  q = q * rest + 2.402211972e-01f;
  q = q * rest + 6.931469671e-01f;
  q = q * rest + 1.0f;
  Integers bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits + 127) << 23;
  V power;
  std::memcpy(&power, &bits, sizeof(power));
  return (x < 0.0f ? V{} : x) - (a * t) * (q * power);  // a NaN stays one
}

static inline double gelu_one(double x) { return 0.5 * x * std::erfc(x * -0.70710678118654752440); }
