// sweep_vec.h in AVX-512 registers.

struct F32 {
  using T = float;
  using R = __m512;
  using M = __mmask16;
  using D = __m512d;
  static constexpr int W = 16;
  static R load(const T* p) { return _mm512_loadu_ps(p); }
  static R load(const T* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store(T* p, R x) { _mm512_storeu_ps(p, x); }
  static void store(T* p, R x, int n) { _mm512_mask_storeu_ps(p, first(n), x); }
  static R set(double x) { return _mm512_set1_ps(static_cast<float>(x)); }
  static D zero() { return _mm512_setzero_pd(); }
  static M bits(const uint8_t* packed, int64_t i, int n) {
    if (n <= 8) return packed[i >> 3];
    uint16_t both;
    std::memcpy(&both, packed + (i >> 3), 2);
    return both;
  }
  static R kept(M m, R a) { return _mm512_maskz_mov_ps(m, a); }
  static M first(int n) { return static_cast<M>((1u << n) - 1); }
  static R add(R a, R b) { return _mm512_add_ps(a, b); }
  static R sub(R a, R b) { return _mm512_sub_ps(a, b); }
  static R mul(R a, R b) { return _mm512_mul_ps(a, b); }
  static R div(R a, R b) { return _mm512_div_ps(a, b); }
  static R fma(R a, R b, R c) { return _mm512_fmadd_ps(a, b, c); }
  static R fnma(R a, R b, R c) { return _mm512_fnmadd_ps(a, b, c); }
  static R sqrt(R a) { return _mm512_sqrt_ps(a); }
  static R max(R a, R b) { return select(_mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a, _mm512_max_ps(a, b)); }
  static R larger(R a, R b) { return _mm512_max_ps(a, b); }  // b where it is a NaN
  static R smaller(R a, R b) { return _mm512_min_ps(a, b); }
  static R abs(R a) { return _mm512_abs_ps(a); }
  static R select(M m, R a, R b) { return _mm512_mask_blend_ps(m, b, a); }
  static M nonzero(R a) { return _mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_NEQ_UQ); }
  static M at_least(R a, R b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static M both(M a, M b) { return a & b; }
  static M without(M a, M b) { return static_cast<M>(a & ~b); }
  static R with_sign_of(R a, R b) { return _mm512_xor_ps(a, _mm512_and_ps(b, _mm512_set1_ps(-0.0f))); }
  static R round(R a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static R times_power(R a, R n) { return _mm512_scalef_ps(a, n); }
  static int count(M m) { return __builtin_popcount(m); }
  static int count(M a, M b) { return __builtin_popcount(_mm512_kunpackw(a, b)); }
  static bool any(M a, M b) { return !_kortestz_mask16_u8(a, b); }
  static int compress(T* out, M m, R x) {  // in a register: compressing into memory is microcoded on some processors
    _mm512_storeu_ps(out, _mm512_maskz_compress_ps(m, x));
    return count(m);
  }
  static void accumulate(D& sum, R x) {
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
    const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
    sum = _mm512_add_pd(sum, _mm512_add_pd(low, high));
  }
  static double total(D sum) { return _mm512_reduce_add_pd(sum); }
};

struct F64 {
  using T = double;
  using R = __m512d;
  using M = __mmask8;
  using D = __m512d;
  static constexpr int W = 8;
  static R load(const T* p) { return _mm512_loadu_pd(p); }
  static R load(const T* p, int n) { return _mm512_maskz_loadu_pd(first(n), p); }
  static void store(T* p, R x) { _mm512_storeu_pd(p, x); }
  static void store(T* p, R x, int n) { _mm512_mask_storeu_pd(p, first(n), x); }
  static R set(double x) { return _mm512_set1_pd(x); }
  static D zero() { return _mm512_setzero_pd(); }
  static M bits(const uint8_t* packed, int64_t i, int) { return packed[i >> 3]; }
  static R kept(M m, R a) { return _mm512_maskz_mov_pd(m, a); }
  static M first(int n) { return static_cast<M>((1u << n) - 1); }
  static R add(R a, R b) { return _mm512_add_pd(a, b); }
  static R sub(R a, R b) { return _mm512_sub_pd(a, b); }
  static R mul(R a, R b) { return _mm512_mul_pd(a, b); }
  static R div(R a, R b) { return _mm512_div_pd(a, b); }
  static R fma(R a, R b, R c) { return _mm512_fmadd_pd(a, b, c); }
  static R fnma(R a, R b, R c) { return _mm512_fnmadd_pd(a, b, c); }
  static R sqrt(R a) { return _mm512_sqrt_pd(a); }
  static R max(R a, R b) { return select(_mm512_cmp_pd_mask(a, a, _CMP_UNORD_Q), a, _mm512_max_pd(a, b)); }
  static R larger(R a, R b) { return _mm512_max_pd(a, b); }  // b where it is a NaN
  static R smaller(R a, R b) { return _mm512_min_pd(a, b); }
  static R abs(R a) { return _mm512_abs_pd(a); }
  static R select(M m, R a, R b) { return _mm512_mask_blend_pd(m, b, a); }
  static M nonzero(R a) { return _mm512_cmp_pd_mask(a, _mm512_setzero_pd(), _CMP_NEQ_UQ); }
  static M at_least(R a, R b) { return _mm512_cmp_pd_mask(a, b, _CMP_GE_OQ); }
  static M both(M a, M b) { return a & b; }
  static M without(M a, M b) { return static_cast<M>(a & ~b); }
  static R with_sign_of(R a, R b) { return _mm512_xor_pd(a, _mm512_and_pd(b, _mm512_set1_pd(-0.0))); }
  static int count(M m) { return __builtin_popcount(m); }
  static int count(M a, M b) { return __builtin_popcount(a | b << 8); }
  static bool any(M a, M b) { return (a | b) != 0; }
  static int compress(T* out, M m, R x) {
    _mm512_storeu_pd(out, _mm512_maskz_compress_pd(m, x));
    return count(m);
  }
  static void accumulate(D& sum, R x) { sum = _mm512_add_pd(sum, x); }
  static double total(D sum) { return _mm512_reduce_add_pd(sum); }
};

static inline __m512 rounded(__m512 x, Kind kind) {
  if (kind == Kind::f16) return _mm512_cvtph_ps(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  if (kind != Kind::bf16) return x;
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), last);
  const __m512i nearest = _mm512_and_si512(up, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
  const __m512i quiet = _mm512_and_si512(_mm512_or_si512(bits, _mm512_set1_epi32(0x400000)),
                                         _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
  return _mm512_castsi512_ps(_mm512_mask_blend_epi32(_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), nearest, quiet));
}
static inline __m512d rounded(__m512d x, Kind) { return x; }
