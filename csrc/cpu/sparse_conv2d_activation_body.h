// What is done to a sum before it is stored.

static inline float gelu_one(float x) { return 0.5f * x * (1 + std::erf(x * 0.70710678118654752f)); }
static inline double gelu_one(double x) { return 0.5 * x * (1 + std::erf(x * 0.70710678118654752)); }

// relu keeps a NaN, as torch does.
template <typename A, typename V>
static inline V activated(V sum, ConvActivation activation) {
  if (activation == ConvActivation::relu) return sum < 0 ? V{} : sum;
  if (activation == ConvActivation::gelu)
    for (int i = 0; i < static_cast<int>(sizeof(V) / sizeof(A)); ++i) sum[i] = gelu_one(sum[i]);
  return sum;
}
