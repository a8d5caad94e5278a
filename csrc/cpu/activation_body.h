// y = activation(sum + addend), on vectors and on single numbers; included by bodies after lanes_body.h.

// exp(x) for x <= 0, within 2 eps: 2^n times a polynomial of the rest.
static inline Vector<float> exp_of(Vector<float> x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves n in the lowest bits
  x = x < -87.0f ? Vector<float>{} - 87.0f : x;
  const Vector<float> shifted = x * 1.44269504f + kRound, n = shifted - kRound;
  const Vector<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  Words bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits + 127) << 23;
  Vector<float> power;
  std::memcpy(&power, &bits, sizeof(power));
  return p * power;
}

// x Phi(x). Phi(-|x|) = erfc(z)/2 with z = |x|/sqrt(2), by the rational Chebyshev approximation of Numerical Recipes,
// whose relative error is below 1.2e-7 for every z: the tail of negative x keeps its digits.
static inline Vector<float> gelu(Vector<float> x) {
  const Vector<float> z = (x < 0.0f ? -x : x) * 0.70710678118654752f;
  const Vector<float> t = 1.0f / (z * 0.5f + 1.0f);
  Vector<float> p = t * 0.17087277f - 0.82215223f;
  p = p * t + 1.48851587f;
  p = p * t - 1.13520398f;
  p = p * t + 0.27886807f;
  p = p * t - 0.18628806f;
  p = p * t + 0.09678418f;
  p = p * t + 0.37409196f;
  p = p * t + 1.00002368f;
  p = p * t - 1.26551223f;
  const Vector<float> tail = 0.5f * t * exp_of(p - z * z);
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

static inline double gelu_one(double x) { return 0.5 * x * std::erfc(x * -0.70710678118654752440); }
static inline float gelu_one(float x) { return gelu(Vector<float>{} + x)[0]; }

static inline Vector<double> gelu(Vector<double> x) {
  for (int i = 0; i < Lanes<double>::count; ++i) x[i] = gelu_one(x[i]);
  return x;
}

// addend: as many elements, or null. A NaN stays one.
template <typename T, typename V>
static inline V finished(V sum, const T* addend, Activation activation) {
  if (addend != nullptr) sum += load(addend);
  if (activation == Activation::relu) return sum < 0 ? V{} : sum;
  return activation == Activation::gelu ? gelu(sum) : sum;
}

template <typename T, typename A>
static inline A finished_one(A sum, const T* addend, Activation activation) {
  if (addend != nullptr) sum += widen_one(*addend);
  if (activation == Activation::relu) return sum < 0 ? 0 : sum;
  return activation == Activation::gelu ? gelu_one(sum) : sum;
}
