// Where the rows of a sparse matrix enter blocks of columns. Included by bodies after lanes_body.h.

// How many of the ascending columns[begin, end) are below `limit`; about `guess`, where it is looked for first.
static inline int32_t below(const int32_t* columns, int32_t begin, int32_t end, int32_t limit, int32_t guess) {
  int64_t i = begin;
#if SPARSE_OPS_AVX512
  if (guess > 8 && columns[begin + guess - 9] < limit) i = begin + guess - 8;
  const __m512i bound = _mm512_set1_epi32(limit);
  for (; i < end; i += 16) {
    const __mmask16 lanes = end - i < 16 ? (1u << (end - i)) - 1 : 0xffff;
    const __mmask16 less = _mm512_mask_cmplt_epi32_mask(lanes, _mm512_maskz_loadu_epi32(lanes, columns + i), bound);
    if (less != 0xffff) return static_cast<int32_t>(i + __builtin_popcount(less) - begin);
  }
#else
  if (guess > 0 && columns[begin + guess - 1] < limit) i = begin + guess;
  while (i < end && columns[i] < limit) ++i;
  while (i > begin && columns[i - 1] >= limit) --i;
#endif
  return static_cast<int32_t>(i - begin);
}

// Where the rows [begin, end) enter each block of `block` columns, and leave the last: cuts[b][row - begin] from
// cuts + begin * (blocks + 1) on.
static void cut_rows(const CsrProblem& p, int64_t begin, int64_t end, int64_t blocks, int64_t block, int32_t* cuts) {
  const int64_t rows = end - begin;
  cuts += begin * (blocks + 1);
  for (int64_t r = 0; r < rows; ++r) {
    int32_t i = p.offsets[begin + r];
    const int32_t last = p.offsets[begin + r + 1];
    cuts[r] = i;
    for (int64_t b = 1; b < blocks; ++b) {
      const int32_t guess = static_cast<int32_t>(static_cast<float>(last - i) / static_cast<float>(blocks + 1 - b));
      i += below(p.columns, i, last, static_cast<int32_t>(b * block), guess);
      cuts[b * rows + r] = i;
    }
    cuts[blocks * rows + r] = last;
  }
}
