// Nonzeros of a row four at a time, for AVX2. Included by csr_sddmm_body.h.

#if SPARSE_OPS_AVX2
static inline __m256d sums_of_two(const __m256& a, const __m256& b) {
  return _mm256_castps_pd(_mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)));
}

// The sums of four vectors, each in the same order, whatever its place.
static inline __m128 sums_of_four(const Vector<float> (&v)[4]) {
  const __m256d low = sums_of_two(v[0], v[1]), high = sums_of_two(v[2], v[3]);
  const __m256 halves = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(low, high)),
                                      _mm256_castpd_ps(_mm256_unpackhi_pd(low, high)));
  return _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
}

// Four nonzeros of a row at once, whose vectors of sums never leave the registers. The last turn of a row reads what
// follows in the panel's place and adds -0, which changes no sum, to the next row's, or leaves it to be written over.
template <typename R, typename T>
static void sample_fours(const CsrProblem& p, const T* panel, const T* dy, int64_t begin, int64_t rows, bool add,
                         int32_t end, float* to) {
  const int32_t* columns = p.columns;
  for (int64_t r = begin; r < begin + rows; ++r, dy += R::width) {
    R row;
    take(dy, &row);
    const int32_t last = p.offsets[r + 1];
    for (int64_t i = p.offsets[r]; i < last; i += 4) {
      const bool inside = end - i >= 4;
      int32_t some[4];
      if (!inside)
        for (int u = 0; u < 4; ++u) some[u] = columns[i + u < last ? i + u : i];
      const int32_t* at = inside ? columns + i : some;
      Vector<float> sums[4];
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) sums[u] = product(row, panel + static_cast<int64_t>(at[u]) * R::width);
      __m128 sum = sums_of_four(sums);
      if (inside) {
        const __m128i count = _mm_set1_epi32(static_cast<int32_t>(last - i));
        const __m128i left = _mm_cmpgt_epi32(count, _mm_setr_epi32(0, 1, 2, 3));
        sum = _mm_blendv_ps(_mm_set1_ps(-0.0f), sum, _mm_castsi128_ps(left));
        _mm_storeu_ps(to + i, add ? _mm_add_ps(_mm_loadu_ps(to + i), sum) : sum);
      } else {
        float one[4];
        _mm_storeu_ps(one, sum);
        for (int u = 0; i + u < last; ++u) to[i + u] = add ? to[i + u] + one[u] : one[u];
      }
    }
  }
}
#endif
