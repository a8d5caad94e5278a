// sweep_vec.h in AVX2 registers.

static inline __m256i spread_bits(unsigned bits) {  // lane i of eight is -1 where bit i is set
  const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), each), each);
}

struct F32 {
  using T = float;
  using R = __m256;
  using M = __m256;
  using D = __m256d;
  static constexpr int W = 8;
  static R load(const T* p) { return _mm256_loadu_ps(p); }
  static R load(const T* p, int n) { return _mm256_maskload_ps(p, _mm256_castps_si256(first(n))); }
  static void store(T* p, R x) { _mm256_storeu_ps(p, x); }
  static void store(T* p, R x, int n) { _mm256_maskstore_ps(p, _mm256_castps_si256(first(n)), x); }
  static R set(double x) { return _mm256_set1_ps(static_cast<float>(x)); }
  static D zero() { return _mm256_setzero_pd(); }
  static M bits(const uint8_t* packed, int64_t i, int) { return _mm256_castsi256_ps(spread_bits(packed[i >> 3])); }
  static R kept(M m, R a) { return _mm256_and_ps(m, a); }
  static M first(int n) { return _mm256_castsi256_ps(spread_bits((1u << n) - 1)); }
  static R add(R a, R b) { return _mm256_add_ps(a, b); }
  static R sub(R a, R b) { return _mm256_sub_ps(a, b); }
  static R mul(R a, R b) { return _mm256_mul_ps(a, b); }
  static R div(R a, R b) { return _mm256_div_ps(a, b); }
  static R fma(R a, R b, R c) { return _mm256_fmadd_ps(a, b, c); }
  static R fnma(R a, R b, R c) { return _mm256_fnmadd_ps(a, b, c); }
  static R sqrt(R a) { return _mm256_sqrt_ps(a); }
  static R max(R a, R b) { return select(_mm256_cmp_ps(a, a, _CMP_UNORD_Q), a, _mm256_max_ps(a, b)); }
  static R larger(R a, R b) { return _mm256_max_ps(a, b); }  // b where it is a NaN
  static R smaller(R a, R b) { return _mm256_min_ps(a, b); }
  static R abs(R a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static R select(M m, R a, R b) { return _mm256_blendv_ps(b, a, m); }
  static M nonzero(R a) { return _mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_NEQ_UQ); }
  static M at_least(R a, R b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
  static M both(M a, M b) { return _mm256_and_ps(a, b); }
  static M without(M a, M b) { return _mm256_andnot_ps(b, a); }
  static R with_sign_of(R a, R b) { return _mm256_xor_ps(a, _mm256_and_ps(b, _mm256_set1_ps(-0.0f))); }
  static R round(R a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static R power(R n) {  // 2^n of integers n >= -126
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
  }
  static R times_power(R a, R n) {
    const R normal = _mm256_max_ps(n, _mm256_set1_ps(-126.0f));
    return _mm256_mul_ps(_mm256_mul_ps(a, power(normal)), power(_mm256_sub_ps(n, normal)));
  }
  static int count(M m) { return __builtin_popcount(_mm256_movemask_ps(m)); }
  static int count(M a, M b) { return count(a) + count(b); }
  static bool any(M a, M b) { return _mm256_movemask_ps(_mm256_or_ps(a, b)) != 0; }
  static int compress(T* out, M m, R x) {
    unsigned bits = _mm256_movemask_ps(m);
    if (bits == 0) return 0;  // the usual case: less than 1 % are candidates
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, x);
    int n = 0;
    for (; bits != 0; bits &= bits - 1) out[n++] = lanes[__builtin_ctz(bits)];
    return n;
  }
  static void accumulate(D& sum, R x) {
    const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
    const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
    sum = _mm256_add_pd(sum, _mm256_add_pd(low, high));
  }
  static double total(D sum) {
    alignas(32) double lanes[4];
    _mm256_store_pd(lanes, sum);
    return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
  }
};

struct F64 {
  using T = double;
  using R = __m256d;
  using M = __m256d;
  using D = __m256d;
  static constexpr int W = 4;
  static M lanes_of(unsigned bits) {
    const __m256i each = _mm256_setr_epi64x(1, 2, 4, 8);
    const __m256i all = _mm256_and_si256(_mm256_set1_epi64x(bits), each);
    return _mm256_castsi256_pd(_mm256_cmpeq_epi64(all, each));
  }
  static R load(const T* p) { return _mm256_loadu_pd(p); }
  static R load(const T* p, int n) { return _mm256_maskload_pd(p, _mm256_castpd_si256(first(n))); }
  static void store(T* p, R x) { _mm256_storeu_pd(p, x); }
  static void store(T* p, R x, int n) { _mm256_maskstore_pd(p, _mm256_castpd_si256(first(n)), x); }
  static R set(double x) { return _mm256_set1_pd(x); }
  static D zero() { return _mm256_setzero_pd(); }
  static M bits(const uint8_t* packed, int64_t i, int) { return lanes_of(packed[i >> 3] >> (i & 7)); }
  static R kept(M m, R a) { return _mm256_and_pd(m, a); }
  static M first(int n) { return lanes_of((1u << n) - 1); }
  static R add(R a, R b) { return _mm256_add_pd(a, b); }
  static R sub(R a, R b) { return _mm256_sub_pd(a, b); }
  static R mul(R a, R b) { return _mm256_mul_pd(a, b); }
  static R div(R a, R b) { return _mm256_div_pd(a, b); }
  static R fma(R a, R b, R c) { return _mm256_fmadd_pd(a, b, c); }
  static R fnma(R a, R b, R c) { return _mm256_fnmadd_pd(a, b, c); }
  static R sqrt(R a) { return _mm256_sqrt_pd(a); }
  static R max(R a, R b) { return select(_mm256_cmp_pd(a, a, _CMP_UNORD_Q), a, _mm256_max_pd(a, b)); }
  static R larger(R a, R b) { return _mm256_max_pd(a, b); }  // b where it is a NaN
  static R smaller(R a, R b) { return _mm256_min_pd(a, b); }
  static R abs(R a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
  static R select(M m, R a, R b) { return _mm256_blendv_pd(b, a, m); }
  static M nonzero(R a) { return _mm256_cmp_pd(a, _mm256_setzero_pd(), _CMP_NEQ_UQ); }
  static M at_least(R a, R b) { return _mm256_cmp_pd(a, b, _CMP_GE_OQ); }
  static M both(M a, M b) { return _mm256_and_pd(a, b); }
  static M without(M a, M b) { return _mm256_andnot_pd(b, a); }
  static R with_sign_of(R a, R b) { return _mm256_xor_pd(a, _mm256_and_pd(b, _mm256_set1_pd(-0.0))); }
  static int count(M m) { return __builtin_popcount(_mm256_movemask_pd(m)); }
  static int count(M a, M b) { return count(a) + count(b); }
  static bool any(M a, M b) { return _mm256_movemask_pd(_mm256_or_pd(a, b)) != 0; }
  static int compress(T* out, M m, R x) {
    unsigned bits = _mm256_movemask_pd(m);
    alignas(32) double lanes[4];
    _mm256_store_pd(lanes, x);
    int n = 0;
    for (; bits != 0; bits &= bits - 1) out[n++] = lanes[__builtin_ctz(bits)];
    return n;
  }
  static void accumulate(D& sum, R x) { sum = _mm256_add_pd(sum, x); }
  static double total(D sum) {
    alignas(32) double lanes[4];
    _mm256_store_pd(lanes, sum);
    return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
  }
};

static inline __m256 rounded(__m256 x, Kind kind) {
  if (kind == Kind::f16) return _mm256_cvtph_ps(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  if (kind != Kind::bf16) return x;
  const __m256i bits = _mm256_castps_si256(x), top = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  const __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), last);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 chosen = _mm256_blendv_ps(_mm256_castsi256_ps(up), _mm256_castsi256_ps(quiet),
                                         _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_and_ps(chosen, _mm256_castsi256_ps(top));
}
static inline __m256d rounded(__m256d x, Kind) { return x; }
