// Sums of a convolution without zeros, whose target channels read the same lines: kRows of them at once use each line
// that is loaded, so that the multiplications and no longer the loads take the time. AVX-512.
constexpr int kRows = sparse_ops::kDenseRows;

template <typename T, int P, int First, int Last, typename A>
static inline void add_dense(const T* const (&in)[P], const ConvEntry<A>* const (&e)[kRows], int64_t n, int lanes,
                             Vector<A> (&acc)[kRows][P][1]) {
  for (int64_t i = 0; i < n; ++i) {
    Vector<A> line[P];
#pragma GCC unroll 4
    for (int p = First; p < P - Last; ++p) line[p] = load_line<false>(in[p] + e[0][i].offset, 0, lanes);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int p = First; p < P - Last; ++p) acc[r][p][0] += e[r][i].value * line[p];
  }
}

// P pixels of a run, the whole of it, of the target channels row .. row + kRows.
template <typename T, int P, typename A>
static void sum_dense(const ConvLines<A>& lines, const ConvRun& run, int64_t row) {
  const int64_t pixel = lines.source_channels * lines.pitch;
  const T* in[P];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) in[p] = static_cast<const T*>(lines.x) + (run.in + p * lines.in_step) * pixel;
  Vector<A> acc[kRows][P][1];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) acc[r][p][0] = Vector<A>{} + (lines.bias == nullptr ? A{} : lines.bias[row + r]);
  const ConvSegment *s = lines.segments + run.first, *end = lines.segments + run.last;
  for (; s < end; ++s) {
    const ConvEntry<A>* e[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) e[r] = lines.entries + lines.starts[(row + r) * lines.taps + s->begin];
    const int64_t n = lines.starts[row * lines.taps + s->end] - lines.starts[row * lines.taps + s->begin];
    if (P > 1 && s->without_first)
      add_dense<T, P, (P > 1), 0>(in, e, n, lines.lanes, acc);
    else if (P > 1 && s->without_last)
      add_dense<T, P, 0, (P > 1)>(in, e, n, lines.lanes, acc);
    else
      add_dense<T, P, 0, 0>(in, e, n, lines.lanes, acc);
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) finish_run<T, P, false>(lines, run, 0, row + r, acc[r]);
}

// The same for bfloat16 in products of two entries.
template <int P>
SPARSE_OPS_PAIRS static void sum_dense_pairs(const ConvLines<float>& lines, const ConvRun& run, int64_t row) {
  const int64_t pixel = lines.source_channels * lines.pitch;
  const __mmask16 mask = mask_of(lines.lanes);
  const BFloat* in[P];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) in[p] = static_cast<const BFloat*>(lines.x) + (run.in + p * lines.in_step) * pixel;
  __m512 acc[kRows][P];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) acc[r][p] = _mm512_set1_ps(lines.bias == nullptr ? 0 : lines.bias[row + r]);
  const ConvSegment *s = lines.segments + run.first, *end = lines.segments + run.last;
  for (; s < end; ++s) {
    const ConvEntry<float>* e[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) e[r] = lines.entries + lines.starts[(row + r) * lines.taps + s->begin];
    const int64_t n = lines.starts[row * lines.taps + s->end] - lines.starts[row * lines.taps + s->begin];
    // A pixel that does not see the segment reads nothing: its lines are masked.
    const __mmask16 at_first = P > 1 && s->without_first ? 0 : mask, at_last = P > 1 && s->without_last ? 0 : mask;
    for (int64_t i = 0; i < n; i += 2) {
      const __mmask16 both = i + 1 < n ? 0xffff : 0;  // zero times an infinity would not be zero
      const int64_t a = e[0][i].offset, b = both ? e[0][i + 1].offset : a;
      __m512bh pair[P];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        const __mmask16 seen = p == 0 ? at_first : p == P - 1 ? at_last : mask;
        pair[p] = interleaved(_mm256_maskz_loadu_epi16(seen, in[p] + a),
                              _mm256_maskz_loadu_epi16(static_cast<__mmask16>(seen & both), in[p] + b));
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const __m512bh value = value_pair(e[r][i].value, both ? e[r][i + 1].value : 0);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[r][p] = _mm512_dpbf16_ps(acc[r][p], pair[p], value);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    Vector<float> sums[P][1];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) sums[p][0] = (Vector<float>)acc[r][p];
    finish_run<BFloat, P, false>(lines, run, 0, row + r, sums);
  }
}
