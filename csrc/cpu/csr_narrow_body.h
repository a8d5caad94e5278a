// Y = A B for tiles of one vector or less: one row of the panel a nonzero, several chains of sums.
// Included by csr_spmm_body.h.

// Half a vector: the panel of up to 8 samples of 512 features stays in L1 so, which it would fill otherwise.
template <typename A>
struct HalfVector {
  typedef A type __attribute__((vector_size(kVectorBytes / 2)));
};

// The same for tiles of one vector V or less: four chains of sums, since one would wait for each addition. Rows of sums
// are a whole vector apart.
template <typename A, typename V>
static void rows_times_narrow(const CsrProblem& p, const A* panel, int64_t begin, int64_t rows, A* sums) {
  constexpr int W = sizeof(V) / sizeof(A);
  const A* values = static_cast<const A*>(p.values);
  const A* bias = static_cast<const A*>(p.bias);
  for (int64_t r = begin; r < begin + rows; ++r, sums += Lanes<A>::count) {
    V sum[4] = {V{} + (bias ? bias[r] : A(0)), V{}, V{}, V{}}, from;
    int32_t i = p.offsets[r];
    const int32_t last = p.offsets[r + 1];
    for (; last - i >= 4; i += 4)
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) {
        std::memcpy(&from, panel + static_cast<int64_t>(p.columns[i + u]) * W, sizeof(from));
        sum[u] += values[i + u] * from;
      }
    for (; i < last; ++i) {
      std::memcpy(&from, panel + static_cast<int64_t>(p.columns[i]) * W, sizeof(from));
      sum[0] += values[i] * from;
    }
    sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    std::memcpy(sums, &sum[0], sizeof(V));
  }
}

#if !SPARSE_OPS_SCALAR
// The same for rows of the panel of eight floats. A value is spread by a shuffle and columns are loaded by pairs, since
// loads are what a nonzero takes most of; and the last eight nonzeros are taken without a branch, with a row of zeros
// in the place of what belongs to the next row: the end of each loop is mispredicted, 5 ns.
static void rows_times_eight(const CsrProblem& p, const float* panel, int64_t begin, int64_t rows, float* sums) {
  alignas(32) static const float zeros[8] = {};
  const float* values = static_cast<const float*>(p.values);
  const float* bias = static_cast<const float*>(p.bias);
  const int64_t limit = p.offsets[p.M];
  for (int64_t r = begin; r < begin + rows; ++r, sums += Lanes<float>::count) {
    __m256 sum[8];
#pragma GCC unroll 8
    for (int u = 0; u < 8; ++u) sum[u] = _mm256_setzero_ps();
    int32_t i = p.offsets[r];
    const int32_t last = p.offsets[r + 1];
    const auto add = [&](int u, const __m256& value, const float* x) {
      sum[u] = _mm256_fmadd_ps(value, _mm256_loadu_ps(x), sum[u]);
    };
    for (; last - i >= 8; i += 8) {
#pragma GCC unroll 2
      for (int h = 0; h < 8; h += 4) {
        const __m256 v = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(values + i + h));
        uint64_t low, high;
        std::memcpy(&low, p.columns + i + h, 8);
        std::memcpy(&high, p.columns + i + h + 2, 8);
        add(h, _mm256_permute_ps(v, 0x00), panel + 8 * (low & 0xffffffff));
        add(h + 1, _mm256_permute_ps(v, 0x55), panel + 8 * (low >> 32));
        add(h + 2, _mm256_permute_ps(v, 0xaa), panel + 8 * (high & 0xffffffff));
        add(h + 3, _mm256_permute_ps(v, 0xff), panel + 8 * (high >> 32));
      }
    }
    if (limit - i >= 8) {
      const int32_t left = last - i;
      const __m256i kept = _mm256_cmpgt_epi32(_mm256_set1_epi32(left), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
      const __m256 v = _mm256_and_ps(_mm256_loadu_ps(values + i), _mm256_castsi256_ps(kept));
      const __m256 low = _mm256_permute2f128_ps(v, v, 0x00), high = _mm256_permute2f128_ps(v, v, 0x11);
      const auto row_or_zeros = [&](int u) {
        const auto nothing = reinterpret_cast<uintptr_t>(zeros);
        const auto row = reinterpret_cast<uintptr_t>(panel + 8 * static_cast<int64_t>(p.columns[i + u]));
        return reinterpret_cast<const float*>(nothing ^ ((nothing ^ row) & -static_cast<uintptr_t>(u < left)));
      };
      add(0, _mm256_permute_ps(low, 0x00), row_or_zeros(0));
      add(1, _mm256_permute_ps(low, 0x55), row_or_zeros(1));
      add(2, _mm256_permute_ps(low, 0xaa), row_or_zeros(2));
      add(3, _mm256_permute_ps(low, 0xff), row_or_zeros(3));
      add(4, _mm256_permute_ps(high, 0x00), row_or_zeros(4));
      add(5, _mm256_permute_ps(high, 0x55), row_or_zeros(5));
      add(6, _mm256_permute_ps(high, 0xaa), row_or_zeros(6));
      add(7, _mm256_permute_ps(high, 0xff), row_or_zeros(7));
    } else {
      for (; i < last; ++i) add(0, _mm256_set1_ps(values[i]), panel + 8 * static_cast<int64_t>(p.columns[i]));
    }
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) sum[u] = _mm256_add_ps(sum[u], sum[u + 4]);
    sum[0] = _mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3]));
    if (bias) sum[0] = _mm256_add_ps(sum[0], _mm256_set1_ps(bias[r]));
    _mm256_storeu_ps(sums, sum[0]);
  }
}
#endif

// Whether that was done.
template <typename A>
static inline bool times_eight(const CsrProblem&, const A*, int64_t, int64_t, int64_t, A*) {
  return false;
}
#if !SPARSE_OPS_SCALAR
static inline bool times_eight(const CsrProblem& p, const float* panel, int64_t tile, int64_t begin, int64_t rows,
                               float* sums) {
  if (tile != 8) return false;
  rows_times_eight(p, panel, begin, rows, sums);
  return true;
}
#endif
