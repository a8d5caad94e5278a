// The sums over the weights below the threshold as moments of x = s|w|; include it inside a body.
//
// All but the largest weights lie below the threshold, where x <= 0.6585 and tanh x, x sech^2 x and x^2 tanh x sech^2 x
// are short odd polynomials of x: their sums are the same polynomials of the sums of x, x^3, ... x^9. A register of
// weights takes 23 instructions and no division. What lies above the cut is put aside for the loop that takes any
// magnitude. Which way a weight goes depends on itself alone, and the moments hardly depend on the order: those of |w|
// and x^3 are summed in compensated pairs, higher powers in integers of 2^-24. Rounding to these shows most in A where
// all weights have x = 0.03: 1.3e-7.

template <class V>
struct Moments {  // of registers without such a loop
  using T = typename V::T;
  explicit Moments(const SweepScope&) {}
  static bool suit(const SweepScope&) { return false; }
  template <int kAhead>
  void add(const T*, int64_t, T* const*) {}
  void join(SweepSums&, double) const {}
  int64_t far_count = 0;
  T* far() { return nullptr; }
  void drop(int64_t) {}
};

#if SPARSE_OPS_AVX512
// Minimax fits on [0, 0.67], relative errors 2.0e-7, 2.3e-6 and 1.1e-4: the second meets ds/s, the third its square.
static constexpr double kEnd = 0.67;
static constexpr double kTanh[5] = {0.999999797128, -0.333310525356, 0.132917545942, -0.0512570696965,
                                    0.0142841636545};
static constexpr double kSlope[5] = {0.999997663881, -0.999749093774, 0.662211234076, -0.349094793022, 0.11636830402};
static constexpr double kCurve[5] = {0, 0.99988861598, -1.32587760639, 1.04998718307, -0.464562602929};

template <>
struct Moments<F32> {
  using V = F32;
  static constexpr float kCubeStart = 32;
  static constexpr float kHalf = 0.5f;  // added to a power: the last bit of a sum in [0.5, 1) is 2^-24
  static constexpr uint32_t kHalfBits = 0x3f000000u;

  float cut, s;
  double start;  // of the sum of |w|: 32 times a power of two that no weight below the cut exceeds
  __m512d n, m3;
  __m512i m5, m7, m9;
  int64_t registers, far_count;
  float far_[2 * kBlock + V::W];

  static double cut_of(const SweepScope& scope) { return std::fmin(scope.low, kEnd / scope.s); }
  static bool suit(const SweepScope& scope) { return cut_of(scope) > 1e-30 && cut_of(scope) < 1e30; }

  explicit Moments(const SweepScope& scope)
      : cut(static_cast<float>(cut_of(scope))), s(static_cast<float>(scope.s)),
        start(std::ldexp(32.0, exponent_of(cut))), n(V::zero()), m3(V::zero()), m5(_mm512_setzero_si512()), m7(m5),
        m9(m5), registers(0), far_count(0) {}

  static int exponent_of(double x) {  // 2^exponent > x
    int exponent = 0;
    std::frexp(x, &exponent);
    return exponent;
  }

  float* far() { return far_; }
  void drop(int64_t count) {
    far_count -= count;
    std::memmove(far_, far_ + count, far_count * sizeof(float));
  }

  template <int kAhead>
  __attribute__((noinline)) void add(const float* w, int64_t count, float* const* ahead) {
    const __m512 limit = V::set(cut), scale = V::set(s), half = V::set(kHalf);
    __m512 whole = V::set(start), lost = V::set(0), whole3 = V::set(kCubeStart), lost3 = lost;
    __m512i bits5 = m5, bits7 = m7, bits9 = m9;
    float* out = far_ + far_count;
    const auto take = [&](__m512 u, __mmask16 valid) {
      const __mmask16 near = _mm512_cmp_ps_mask(u, limit, _CMP_LT_OQ), outside = _kandn_mask16(near, valid);
      _mm512_storeu_ps(out, _mm512_maskz_compress_ps(outside, u));
      out += __builtin_popcount(outside);
      u = V::kept(near, u);
      const __m512 sum = V::add(whole, u);
      lost = V::add(lost, V::add(V::sub(whole, sum), u));
      whole = sum;
      const __m512 x = V::mul(scale, u), z = V::mul(x, x), z2 = V::mul(z, z);
      const __m512 x3 = V::mul(x, z), x5 = V::mul(x, z2), sum3 = V::add(x3, whole3);
      lost3 = V::add(lost3, V::add(x3, V::sub(whole3, sum3)));
      whole3 = sum3;
      bits5 = _mm512_add_epi32(bits5, _mm512_castps_si512(V::add(x5, half)));
      bits7 = _mm512_add_epi32(bits7, _mm512_castps_si512(V::fma(x3, z2, half)));
      bits9 = _mm512_add_epi32(bits9, _mm512_castps_si512(V::fma(x5, z2, half)));
    };
    int64_t i = 0;
    for (; i + 2 * V::W <= count; i += 2 * V::W) {
      for (int k = 0; k < kAhead; ++k) {
        __builtin_prefetch(ahead[k] + i);
        __builtin_prefetch(ahead[k] + i + V::W);
      }
      take(V::abs(V::load(w + i)), 0xffff);
      take(V::abs(V::load(w + i + V::W)), 0xffff);
    }
    for (; i < count; i += V::W) {
      const int lanes = count - i < V::W ? static_cast<int>(count - i) : V::W;
      take(V::abs(V::load(w + i, lanes)), V::first(lanes));
    }
    m5 = bits5;
    m7 = bits7;
    m9 = bits9;
    registers += (count + V::W - 1) / V::W;
    far_count = out - far_;
    V::accumulate(n, V::sub(whole, V::set(start)));
    V::accumulate(n, lost);
    V::accumulate(m3, V::sub(whole3, V::set(kCubeStart)));
    V::accumulate(m3, lost3);
  }

  double power(__m512i bits) const {  // of a chunk: 1024 registers of terms below 0.14 stay below 2^32
    alignas(64) uint32_t lanes[16];
    _mm512_store_si512(lanes, bits);
    uint64_t sum = 0;
    const uint32_t none = static_cast<uint32_t>(registers) * kHalfBits;
    for (const uint32_t lane : lanes) sum += lane - none;
    return static_cast<double>(sum) * 0x1p-24;
  }

  // Adds to what the far weights gave, at the scale itself: the loop took it as a float.
  void join(SweepSums& out, double scale) const {
    const double taken = s, sum = V::total(n);
    const double m[5] = {taken * sum, V::total(m3), power(m5), power(m7), power(m9)};
    double t0 = 0, t1 = 0, t2 = 0;
    for (int j = 0; j < 5; ++j) {
      t0 += kTanh[j] * m[j];
      t1 += kSlope[j] * m[j];
      t2 += kCurve[j] * m[j];
    }
    out.n += sum;
    out.t0 += t0 + (scale / taken - 1) * t1;
    out.t1 += t1 / taken;
    out.t2 += t2 / (taken * taken);
  }
};
#endif
