// Products with a matrix regrouped for one call: within a run of rows its nonzeros lie by blocks of columns, whose rows
// of the panel stay in L1 while all rows of the run pass, with the place in the panel beside the value: one stream,
// read once a tile. Only with AVX-512. Included by a body after tiles_body.h and csr_cuts_body.h.

#if SPARSE_OPS_AVX512
struct GroupedEntry {
  float value;
  int32_t offset;  // of the row in the panel, in bytes
};

// n nonzeros as entries of rows of the panel 1 << shift bytes apart.
static inline void put_entries(const float* values, const int32_t* columns, int32_t n, int shift, GroupedEntry* to) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  for (; n > 0; n -= 16, values += 16, columns += 16, to += 16) {
    const uint32_t lanes = n < 16 ? (1u << n) - 1 : 0xffff;
    const uint32_t doubled = n < 16 ? static_cast<uint32_t>((1ull << 2 * n) - 1) : ~0u;
    const __m512i v = _mm512_maskz_loadu_epi32(lanes, values);
    const __m512i at = _mm512_slli_epi32(_mm512_maskz_loadu_epi32(lanes, columns), shift);
    _mm512_mask_storeu_epi32(to, doubled, _mm512_permutex2var_epi32(v, low, at));
    _mm512_mask_storeu_epi32(to + 8, doubled >> 16, _mm512_permutex2var_epi32(v, high, at));
  }
}

// The nonzeros of the run [begin, end), which has been cut, into entries + offsets[begin].
static void regroup_rows(const CsrProblem& p, int64_t begin, int64_t end, int64_t blocks, const int32_t* cuts,
                         void* entries) {
  constexpr int shift = 7;
  static_assert((1 << shift) == 2 * kVectorBytes, "a row of the panel is two vectors");
  const float* values = static_cast<const float*>(p.values);
  GroupedEntry* to = static_cast<GroupedEntry*>(entries) + p.offsets[begin];
  const int64_t rows = end - begin;
  cuts += begin * (blocks + 1);
  for (int64_t b = 0; b < blocks; ++b, cuts += rows)
    for (int64_t r = 0; r < rows; ++r) {
      const int32_t i = cuts[r], n = cuts[rows + r] - i;
      put_entries(values + i, p.columns + i, n, shift, to);
      to += n;
    }
}

// sums[i][...] += the entries of row i, to[i] - from[i] of them; from `bias` (or 0 where null) on if First. Two vectors
// a row, and two chains for each. Returns the end of the entries.
template <bool First>
static const GroupedEntry* rows_times_grouped(const GroupedEntry* entry, const int32_t* from, const int32_t* to,
                                            int64_t rows, const float* panel, const float* bias, float* sums) {
  constexpr int W = Lanes<float>::count;
  const char* base = reinterpret_cast<const char*>(panel);
  const auto row_of = [&](const GroupedEntry& e) { return reinterpret_cast<const float*>(base + e.offset); };
  for (int64_t r = 0; r < rows; ++r, sums += 2 * W) {
    Vector<float> a, b, c{}, d{};
    if (First) {
      a = b = Vector<float>{} + (bias ? bias[r] : 0.0f);
    } else {
      a = load(sums);
      b = load(sums + W);
    }
    int32_t n = to[r] - from[r];
    for (; n > 1; n -= 2, entry += 2) {
      const float *x = row_of(entry[0]), *y = row_of(entry[1]);
      a += entry[0].value * load(x);
      b += entry[0].value * load(x + W);
      c += entry[1].value * load(y);
      d += entry[1].value * load(y + W);
    }
    if (n > 0) {
      const float* x = row_of(*entry);
      a += entry->value * load(x);
      b += entry->value * load(x + W);
      ++entry;
    }
    store(sums, a + c);
    store(sums + W, b + d);
  }
  return entry;
}

// As `spmm` for the run [begin, end), which has been cut and regrouped: sums hold (end - begin) * tile, two vectors.
static void spmm_grouped(const CsrProblem& p, const void* entries, const int32_t* cuts, int64_t blocks, int64_t first,
                         int64_t begin, int64_t end, float* panel, bool pack, float* sums) {
  constexpr int64_t tile = 2 * Lanes<float>::count;
  if (pack) pack_panel(static_cast<const float*>(p.b), 0, p.K, p.K, p.N, first, tile, p.transposed, panel);
  const int64_t rows = end - begin;
  const auto* entry = static_cast<const GroupedEntry*>(entries) + p.offsets[begin];
  cuts += begin * (blocks + 1);
  for (int64_t b = 0; b < blocks; ++b, cuts += rows)
    for (int64_t r = 0; r < rows; r += kSumRows) {
      const int64_t some = rows - r < kSumRows ? rows - r : kSumRows;
      const float* bias = p.bias == nullptr ? nullptr : static_cast<const float*>(p.bias) + begin + r;
      const int32_t *from = cuts + r, *to = from + rows;
      float* sum = sums + r * tile;
      entry = b == 0 ? rows_times_grouped<true>(entry, from, to, some, panel, bias, sum)
                     : rows_times_grouped<false>(entry, from, to, some, panel, nullptr, sum);
      if (b + 1 == blocks) unpack_panel<float>(p, sum, begin + r, some, first, tile);
    }
}
#else  // never chosen
static void regroup_rows(const CsrProblem&, int64_t, int64_t, int64_t, const int32_t*, void*) {}
static void spmm_grouped(const CsrProblem&, const void*, const int32_t*, int64_t, int64_t, int64_t, int64_t, float*,
                         bool, float*) {}
#endif
