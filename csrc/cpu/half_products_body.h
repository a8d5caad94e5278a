// Rows of a sparse matrix times a panel of halves: float32 sums of a tile. Included by a body after half_tiles_body.h.

static inline void join(const BFloat*, const Vector<float>& a, const Vector<float>& b, float* to) {
  Vector<float> low, high;
  interleave(a, b, &low, &high);
  store(to, low);
  store(to + Lanes<float>::count, high);
}

static inline void join(const Half*, const Vector<float>& a, const Vector<float>& b, float* to) {
  store(to, a);
  store(to + Lanes<float>::count, b);
}

// sums[i][...] for the rows [begin, begin + rows).
template <typename T, int NV>
static void rows_times_halves(const CsrProblem& p, const T* panel, int64_t begin, int64_t rows, float* sums) {
  constexpr int H = HalfLanes::count;
  const float* values = static_cast<const float*>(p.values);
  const float* bias = static_cast<const float*>(p.bias);
  for (int64_t r = begin; r < begin + rows; ++r, sums += NV * H) {
    Vector<float> sum[2 * NV];
#pragma GCC unroll 8
    for (int u = 0; u < 2 * NV; ++u) sum[u] = Vector<float>{} + (bias ? bias[r] : 0);
    for (int32_t i = p.offsets[r]; i < p.offsets[r + 1]; ++i) {
      const T* from = panel + static_cast<int64_t>(p.columns[i]) * (NV * H);
      const float value = values[i];
#pragma GCC unroll 4
      for (int u = 0; u < NV; ++u) {
        Vector<float> a, b;
        split(from + u * H, &a, &b);
        sum[2 * u] += value * a;
        sum[2 * u + 1] += value * b;
      }
    }
#pragma GCC unroll 4
    for (int u = 0; u < NV; ++u) join(panel, sum[2 * u], sum[2 * u + 1], sums + u * H);
  }
}

#if SPARSE_OPS_AVX512
// The same for bfloat16 with an instruction that adds the products of two nonzeros: their rows of the panel are
// interleaved, which swaps the quarters of the sums, and swapped back at the end of a row.
template <int NV>
SPARSE_OPS_PAIRS static void rows_times_paired(const CsrProblem& p, const uint16_t* panel, int64_t begin, int64_t rows,
                                               float* sums) {
  constexpr int H = HalfLanes::count;
  const uint16_t* values = static_cast<const uint16_t*>(p.values);
  const float* bias = static_cast<const float*>(p.bias);
  const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i high = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  for (int64_t r = begin; r < begin + rows; ++r, sums += NV * H) {
    __m512 sum[2 * NV];
#pragma GCC unroll 8
    for (int u = 0; u < 2 * NV; ++u) sum[u] = _mm512_set1_ps(bias ? bias[r] : 0);
    int32_t i = p.offsets[r];
    const int32_t last = p.offsets[r + 1];
    for (; last - i >= 2; i += 2) {
      const uint16_t* a = panel + static_cast<int64_t>(p.columns[i]) * (NV * H);
      const uint16_t* b = panel + static_cast<int64_t>(p.columns[i + 1]) * (NV * H);
      int32_t both;
      std::memcpy(&both, values + i, 4);
      const __m512bh value = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 4
      for (int u = 0; u < NV; ++u) {
        const __m512i x = _mm512_loadu_si512(a + u * H), y = _mm512_loadu_si512(b + u * H);
        sum[2 * u] = _mm512_dpbf16_ps(sum[2 * u], (__m512bh)_mm512_unpacklo_epi16(x, y), value);
        sum[2 * u + 1] = _mm512_dpbf16_ps(sum[2 * u + 1], (__m512bh)_mm512_unpackhi_epi16(x, y), value);
      }
    }
    if (i < last) {
      const uint16_t* a = panel + static_cast<int64_t>(p.columns[i]) * (NV * H);
      const __m512bh value = (__m512bh)_mm512_set1_epi32(values[i]);
      const __m512i nothing = _mm512_setzero_si512();
#pragma GCC unroll 4
      for (int u = 0; u < NV; ++u) {
        const __m512i x = _mm512_loadu_si512(a + u * H);
        sum[2 * u] = _mm512_dpbf16_ps(sum[2 * u], (__m512bh)_mm512_unpacklo_epi16(x, nothing), value);
        sum[2 * u + 1] = _mm512_dpbf16_ps(sum[2 * u + 1], (__m512bh)_mm512_unpackhi_epi16(x, nothing), value);
      }
    }
#pragma GCC unroll 4
    for (int u = 0; u < NV; ++u) {
      _mm512_storeu_ps(sums + u * H, _mm512_permutex2var_ps(sum[2 * u], low, sum[2 * u + 1]));
      _mm512_storeu_ps(sums + u * H + H / 2, _mm512_permutex2var_ps(sum[2 * u], high, sum[2 * u + 1]));
    }
  }
}

SPARSE_OPS_PAIRS static void rows_times_pairs(const CsrProblem& p, const uint16_t* panel, int64_t tile, int64_t begin,
                                              int64_t rows, float* sums) {
  switch (tile / HalfLanes::count) {
    case 1: return rows_times_paired<1>(p, panel, begin, rows, sums);
    case 2: return rows_times_paired<2>(p, panel, begin, rows, sums);
    case 4: return rows_times_paired<4>(p, panel, begin, rows, sums);
  }
}
#else
static void rows_times_pairs(const CsrProblem&, const uint16_t*, int64_t, int64_t, int64_t, float*) {}  // never chosen
#endif
