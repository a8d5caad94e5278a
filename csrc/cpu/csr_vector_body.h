// Y = A b for one sample: no tile, each row gathers from b. Included by csr_spmm_body.h.

// 16 bytes of the compute type: what the gathers of N = 1 fill number by number, which is a third faster than a gather
// instruction on Zen 4 (0.28 against 0.37 to 0.39 ns a nonzero) and than scalar sums.
template <typename A>
struct Few {
  static constexpr int count = 16 / static_cast<int>(sizeof(A));
  typedef A vector __attribute__((vector_size(16)));
};

static inline Few<float>::vector few(const float* p) {
  Few<float>::vector v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
static inline Few<double>::vector few(const double* p) {
  Few<double>::vector v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
template <typename T>
static inline Few<float>::vector few(const T* p) {
  return Few<float>::vector{widen_one(p[0]), widen_one(p[1]), widen_one(p[2]), widen_one(p[3])};
}
static inline Few<float>::vector gathered(const float* x, const int32_t* at) {
  return Few<float>::vector{x[at[0]], x[at[1]], x[at[2]], x[at[3]]};
}
static inline Few<double>::vector gathered(const double* x, const int32_t* at) {
  return Few<double>::vector{x[at[0]], x[at[1]]};
}

// The sum of values[i] * x[columns[i]] for i from begin to end, in numbers of 16 bytes; `limit`: where columns end.
template <typename T, typename A>
static inline A row_times_vector(const T* values, const int32_t* columns, int32_t begin, int32_t end, int64_t,
                                 const A* x) {
  constexpr int F = Few<A>::count;
  typename Few<A>::vector sum[4] = {};  // four chains hide the latency of the addition
  int32_t i = begin;
  for (; end - i >= 4 * F; i += 4 * F)
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) sum[u] += few(values + i + u * F) * gathered(x, columns + i + u * F);
  for (; end - i >= F; i += F) sum[0] += few(values + i) * gathered(x, columns + i);
  sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  A total = 0;
  for (int u = 0; u < F; ++u) total += sum[0][u];
  for (; i < end; ++i) total += widen_one(values[i]) * x[columns[i]];
  return total;
}

#if !SPARSE_OPS_SCALAR
static inline __m256 eight(const float* p) { return _mm256_loadu_ps(p); }
static inline __m256 eight(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline __m256 eight(const BFloat* p) {
  const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
}

// Columns are loaded by pairs: loads are what a nonzero takes most of.
static inline __m128 gathered_by_pairs(const float* x, const int32_t* at) {
  uint64_t low, high;
  std::memcpy(&low, at, 8);
  std::memcpy(&high, at + 2, 8);
  return _mm_setr_ps(x[static_cast<uint32_t>(low)], x[low >> 32], x[static_cast<uint32_t>(high)], x[high >> 32]);
}

// The same with a vector of eight a turn. The last turn takes columns of the next row too, and leaves their products
// out: a loop over what remains would be mispredicted once more, 5 ns.
template <typename T>
static inline float row_times_vector(const T* values, const int32_t* columns, int32_t begin, int32_t end, int64_t limit,
                                     const float* x) {
  __m128 a = _mm_setzero_ps(), b = a;
  int32_t i = begin;
  for (; end - i >= 8; i += 8) {
    const __m256 v = eight(values + i);
    a = _mm_fmadd_ps(_mm256_castps256_ps128(v), gathered_by_pairs(x, columns + i), a);
    b = _mm_fmadd_ps(_mm256_extractf128_ps(v, 1), gathered_by_pairs(x, columns + i + 4), b);
  }
  float rest = 0;
  if (limit - i >= 8) {
    const __m128i left = _mm_set1_epi32(end - i);
    const __m128 low = _mm_castsi128_ps(_mm_cmpgt_epi32(left, _mm_setr_epi32(0, 1, 2, 3)));
    const __m128 high = _mm_castsi128_ps(_mm_cmpgt_epi32(left, _mm_setr_epi32(4, 5, 6, 7)));
    const __m256 v = eight(values + i);
    a = _mm_fmadd_ps(_mm_and_ps(_mm256_castps256_ps128(v), low), _mm_and_ps(gathered_by_pairs(x, columns + i), low), a);
    b = _mm_fmadd_ps(_mm_and_ps(_mm256_extractf128_ps(v, 1), high),
                     _mm_and_ps(gathered_by_pairs(x, columns + i + 4), high), b);
  } else {
    for (; i < end; ++i) rest += widen_one(values[i]) * x[columns[i]];
  }
  a = _mm_add_ps(a, b);
  a = _mm_add_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a))) + rest;
}
#endif

// N = 1: no tile, each row gathers from x, which is widened.
template <typename T, typename A>
static void rows_times_vector(const CsrProblem& p, const A* x, int64_t begin, int64_t end) {
  const T* values = static_cast<const T*>(p.values);
  const T* bias = static_cast<const T*>(p.bias);
  const T* addend = static_cast<const T*>(p.addend);
  A totals[kSumRows] = {};
  for (int64_t from = begin; from < end; from += kSumRows) {
    const int64_t rows = end - from < kSumRows ? end - from : kSumRows;
    for (int64_t i = 0, r = from; i < rows; ++i, ++r) {
      totals[i] = row_times_vector(values, p.columns, p.offsets[r], p.offsets[r + 1], p.offsets[p.M], x);
      if (bias) totals[i] += widen_one(bias[r]);
      if (addend) totals[i] += widen_one(addend[r]);
    }
    if (p.activation == Activation::gelu) gelu_all(totals, rows);
    for (int64_t i = 0; i < rows; ++i) {
      const A total = p.activation == Activation::relu && totals[i] < 0 ? 0 : totals[i];
      narrow_one(total, static_cast<T*>(p.y) + from + i);
    }
  }
}

static inline const float* widened_vector(const float* b, int64_t, float*) { return b; }
static inline const double* widened_vector(const double* b, int64_t, double*) { return b; }
template <typename T>
static inline const float* widened_vector(const T* b, int64_t n, float* panel) {
  for (int64_t k = 0; k < n; ++k) panel[k] = widen_one(b[k]);
  return panel;
}
