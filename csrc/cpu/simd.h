// float32 vectors of 16, 8 or 1 lanes, and float64 sums of them; include it inside a body.

#if SPARSE_OPS_AVX512
using Vec = __m512;
static constexpr int64_t kLanes = 16;

static inline Vec set(float x) { return _mm512_set1_ps(x); }
static inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
static inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
// The first n < kLanes lanes; the others are 0 and are not stored.
static inline Vec load_first(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}
static inline void store_first(float* p, Vec x, int64_t n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), x);
}
static inline Vec magnitude(Vec x) { return _mm512_abs_ps(x); }
static inline Vec mul(Vec x, Vec y) { return _mm512_mul_ps(x, y); }
static inline Vec fma(Vec x, Vec y, Vec z) { return _mm512_fmadd_ps(x, y, z); }
// x with its sign flipped where w is negative, and 0 where w is 0.
static inline Vec times_sign(Vec x, Vec w) {
  const __m512i sign = _mm512_and_si512(_mm512_castps_si512(w), _mm512_set1_epi32(INT32_MIN));
  const __mmask16 some = _mm512_cmp_ps_mask(w, _mm512_setzero_ps(), _CMP_NEQ_UQ);
  return _mm512_castsi512_ps(_mm512_maskz_xor_epi32(some, _mm512_castps_si512(x), sign));
}

// An aggregate with free functions: the compiler's own constructors would miss the instruction set.
struct Sum {
  __m512d low, high;
};
static inline void clear(Sum& sum) { sum.low = sum.high = _mm512_setzero_pd(); }
static inline void add(Sum& sum, Vec x) {
  sum.low = _mm512_add_pd(sum.low, _mm512_cvtps_pd(_mm512_castps512_ps256(x)));
  sum.high = _mm512_add_pd(sum.high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)));
}
static inline double total(const Sum& sum) { return _mm512_reduce_add_pd(_mm512_add_pd(sum.low, sum.high)); }

#elif SPARSE_OPS_AVX2
using Vec = __m256;
static constexpr int64_t kLanes = 8;

static inline Vec set(float x) { return _mm256_set1_ps(x); }
static inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
static inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
static inline __m256i first_lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline Vec load_first(const float* p, int64_t n) { return _mm256_maskload_ps(p, first_lanes(n)); }
static inline void store_first(float* p, Vec x, int64_t n) { _mm256_maskstore_ps(p, first_lanes(n), x); }
static inline Vec magnitude(Vec x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
static inline Vec mul(Vec x, Vec y) { return _mm256_mul_ps(x, y); }
static inline Vec fma(Vec x, Vec y, Vec z) { return _mm256_fmadd_ps(x, y, z); }
static inline Vec times_sign(Vec x, Vec w) {
  const __m256 some = _mm256_cmp_ps(w, _mm256_setzero_ps(), _CMP_NEQ_UQ);
  return _mm256_and_ps(some, _mm256_xor_ps(x, _mm256_and_ps(w, _mm256_set1_ps(-0.0f))));
}

struct Sum {
  __m256d low, high;
};
static inline void clear(Sum& sum) { sum.low = sum.high = _mm256_setzero_pd(); }
static inline void add(Sum& sum, Vec x) {
  sum.low = _mm256_add_pd(sum.low, _mm256_cvtps_pd(_mm256_castps256_ps128(x)));
  sum.high = _mm256_add_pd(sum.high, _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
}
static inline double total(const Sum& sum) {
  double lanes[4];
  _mm256_storeu_pd(lanes, _mm256_add_pd(sum.low, sum.high));
  return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

#else
using Vec = float;
static constexpr int64_t kLanes = 1;

static inline Vec set(float x) { return x; }
static inline Vec load(const float* p) { return *p; }
static inline void store(float* p, Vec x) { *p = x; }
static inline Vec load_first(const float*, int64_t) { return 0; }  // a vector of one lane is never cut
static inline void store_first(float*, Vec, int64_t) {}
static inline Vec magnitude(Vec x) { return std::fabs(x); }
static inline Vec mul(Vec x, Vec y) { return x * y; }
static inline Vec fma(Vec x, Vec y, Vec z) { return x * y + z; }
static inline Vec times_sign(Vec x, Vec w) { return w > 0 ? x : w < 0 ? -x : w == 0 ? 0 : w; }

struct Sum {
  double value;
};
static inline void clear(Sum& sum) { sum.value = 0; }
static inline void add(Sum& sum, Vec x) { sum.value += x; }
static inline double total(const Sum& sum) { return sum.value; }
#endif
