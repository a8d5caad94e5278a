// tanh and sech^2 where nearly all arguments are small, as s|w| is with s = 0.6585/threshold; include it inside a body.
//
// Up to 2.5 tanh is x P(x^2) / Q(x^2), a minimax fit with a relative error of 1.8e-8 in float32 coefficients, and sech^2 =
// 1 - tanh^2 cancels by a factor of at most 40: 5e-6 relative. A register with a greater argument or a NaN takes tanh.h
// for those lanes alone, so that an element's value does not depend on its neighbours. Half the time of tanh.h.

#include "tanh.h"

#if SPARSE_OPS_SCALAR
static inline void tanh_mostly_near(float x, float& t, float& c) { tanh_sech2(x, t, c); }
#else
static constexpr float kNear = 2.5f, kP1 = 0.11996801f, kP2 = 0.0019056661f;
static constexpr float kQ1 = 0.45330125f, kQ2 = 0.019673f, kQ3 = 8.546748e-05f;
#endif

#if SPARSE_OPS_AVX2
static inline void tanh_mostly_near(__m256 x, __m256& t, __m256& c) {
  const __m256 one = _mm256_set1_ps(1.0f), z = _mm256_mul_ps(x, x);
  const __m256 p = _mm256_fmadd_ps(_mm256_fmadd_ps(_mm256_set1_ps(kP2), z, _mm256_set1_ps(kP1)), z, one);
  __m256 q = _mm256_fmadd_ps(_mm256_set1_ps(kQ3), z, _mm256_set1_ps(kQ2));
  q = _mm256_fmadd_ps(_mm256_fmadd_ps(q, z, _mm256_set1_ps(kQ1)), z, one);
  t = _mm256_div_ps(_mm256_mul_ps(x, p), q);
  c = _mm256_fnmadd_ps(t, t, one);
  const __m256 far = _mm256_cmp_ps(x, _mm256_set1_ps(kNear), _CMP_NLE_UQ);
  if (__builtin_expect(_mm256_movemask_ps(far) != 0, 0)) {
    __m256 far_t, far_c;
    tanh_sech2(x, far_t, far_c);
    t = _mm256_blendv_ps(t, far_t, far);
    c = _mm256_blendv_ps(c, far_c, far);
  }
}
#endif

#if SPARSE_OPS_AVX512
static inline void tanh_mostly_near(__m512 x, __m512& t, __m512& c) {
  const __m512 one = _mm512_set1_ps(1.0f), z = _mm512_mul_ps(x, x);
  const __m512 p = _mm512_fmadd_ps(_mm512_fmadd_ps(_mm512_set1_ps(kP2), z, _mm512_set1_ps(kP1)), z, one);
  __m512 q = _mm512_fmadd_ps(_mm512_set1_ps(kQ3), z, _mm512_set1_ps(kQ2));
  q = _mm512_fmadd_ps(_mm512_fmadd_ps(q, z, _mm512_set1_ps(kQ1)), z, one);
  __m512 inverse = _mm512_rcp14_ps(q);  // and one step of Newton: 2^-28, at half the price of a division
  inverse = _mm512_fmadd_ps(inverse, _mm512_fnmadd_ps(q, inverse, one), inverse);
  t = _mm512_mul_ps(_mm512_mul_ps(x, p), inverse);
  c = _mm512_fnmadd_ps(t, t, one);
  const __mmask16 far = _mm512_cmp_ps_mask(x, _mm512_set1_ps(kNear), _CMP_NLE_UQ);
  if (__builtin_expect(far != 0, 0)) {
    __m512 far_t, far_c;
    tanh_sech2(x, far_t, far_c);
    t = _mm512_mask_blend_ps(far, t, far_t);
    c = _mm512_mask_blend_ps(far, c, far_c);
  }
}
#endif
