// Counts magnitudes below an interval and histograms those inside: one pass of the selection.
#include "widen.h"

template <typename Word>
static void tally_keys(const Word* data, int64_t n, const Interval& in, Tally& tally) {
  constexpr Word magnitude = static_cast<Word>(~static_cast<Word>(0)) >> 1;
  const Word low = static_cast<Word>(in.low), last = static_cast<Word>(in.last);
  Word largest = 0;
  uint64_t below = 0, at_low = 0;
  for (int64_t i = 0; i < n; ++i) {
    Word key;
    std::memcpy(&key, data + i, sizeof(Word));  // the block may have been written as floats
    key &= magnitude;
    largest = key > largest ? key : largest;
    below += key < low;
    at_low += key == low;
    if (key > low && key <= last) ++tally.bins[((key - low) >> in.shift) * 2 + (i & 1)];
  }
  tally.below += below;
  tally.at_low += at_low;
  if (largest > tally.largest) tally.largest = largest;
}

#if SPARSE_OPS_AVX2 || SPARSE_OPS_AVX512
static constexpr int64_t kSlice = 1024;  // offsets are collected for so many elements, then counted

static inline void count_offsets(const uint32_t* offsets, int64_t n, uint32_t* bins) {
  int64_t i = 0;
  for (; i + 2 <= n; i += 2) {  // two histograms: equal neighbours do not wait for each other
    ++bins[offsets[i] * 2];
    ++bins[offsets[i + 1] * 2 + 1];
  }
  if (i < n) ++bins[offsets[i] * 2];
}
#endif

#if SPARSE_OPS_AVX2
static inline __m256i load_keys(const uint32_t* p) {
  return _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), _mm256_set1_epi32(0x7fffffff));
}

static inline __m256i load_keys(const uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_and_si256(wide, _mm256_set1_epi32(0x7fff));
}

template <typename Word>
static void tally_vectors(const Word* data, int64_t n, const Interval& in, Tally& tally) {
  const __m256i low = _mm256_set1_epi32(static_cast<int>(in.low)), last = _mm256_set1_epi32(static_cast<int>(in.last));
  const __m128i shift = _mm_cvtsi32_si128(in.shift);
  uint32_t offsets[kSlice + 8];
  __m256i largest = _mm256_setzero_si256();
  const int64_t whole = n / 8 * 8;
  for (int64_t slice = 0; slice < whole; slice += kSlice) {
    const int64_t end = slice + kSlice < whole ? slice + kSlice : whole;
    __m256i below = _mm256_setzero_si256(), at_low = _mm256_setzero_si256();
    int64_t count = 0;
    for (int64_t i = slice; i < end; i += 8) {
      const __m256i key = load_keys(data + i);
      largest = _mm256_max_epu32(largest, key);
      below = _mm256_sub_epi32(below, _mm256_cmpgt_epi32(low, key));
      at_low = _mm256_sub_epi32(at_low, _mm256_cmpeq_epi32(low, key));
      const __m256i inside = _mm256_andnot_si256(_mm256_cmpgt_epi32(key, last), _mm256_cmpgt_epi32(key, low));
      uint32_t found = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(inside)));
      if (found == 0) continue;
      uint32_t all[8];
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(all), _mm256_srl_epi32(_mm256_sub_epi32(key, low), shift));
      for (; found != 0; found &= found - 1) offsets[count++] = all[__builtin_ctz(found)];
    }
    count_offsets(offsets, count, tally.bins);
    uint32_t lanes[16];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), below);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes + 8), at_low);
    for (int j = 0; j < 8; ++j) tally.below += lanes[j], tally.at_low += lanes[8 + j];
  }
  uint32_t lanes[8];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), largest);
  for (int j = 0; j < 8; ++j) tally.largest = lanes[j] > tally.largest ? lanes[j] : tally.largest;
  tally_keys(data + whole, n - whole, in, tally);
}
#endif

#if SPARSE_OPS_AVX512
static inline __m512i load_keys(const uint32_t* p) {
  return _mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(0x7fffffff));
}

static inline __m512i load_keys(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_and_si512(wide, _mm512_set1_epi32(0x7fff));
}

template <typename Word>
static void tally_vectors(const Word* data, int64_t n, const Interval& in, Tally& tally) {
  const __m512i low = _mm512_set1_epi32(static_cast<int>(in.low)), last = _mm512_set1_epi32(static_cast<int>(in.last));
  const __m512i one = _mm512_set1_epi32(1);
  const __m128i shift = _mm_cvtsi32_si128(in.shift);
  uint32_t offsets[kSlice + 16];
  __m512i largest = _mm512_setzero_si512();
  const int64_t whole = n / 16 * 16;
  for (int64_t slice = 0; slice < whole; slice += kSlice) {
    const int64_t end = slice + kSlice < whole ? slice + kSlice : whole;
    __m512i below = _mm512_setzero_si512(), at_low = _mm512_setzero_si512();
    int64_t count = 0;
    for (int64_t i = slice; i < end; i += 16) {
      const __m512i key = load_keys(data + i);
      largest = _mm512_max_epu32(largest, key);
      below = _mm512_mask_add_epi32(below, _mm512_cmplt_epu32_mask(key, low), below, one);
      at_low = _mm512_mask_add_epi32(at_low, _mm512_cmpeq_epu32_mask(key, low), at_low, one);
      const __mmask16 inside = _mm512_mask_cmple_epu32_mask(_mm512_cmpgt_epu32_mask(key, low), key, last);
      const __m512i offset = _mm512_srl_epi32(_mm512_sub_epi32(key, low), shift);
      // Compressed in the register: compressing to memory takes over a hundred cycles on some processors.
      _mm512_storeu_si512(offsets + count, _mm512_maskz_compress_epi32(inside, offset));
      count += __builtin_popcount(inside);
    }
    count_offsets(offsets, count, tally.bins);
    tally.below += static_cast<uint32_t>(_mm512_reduce_add_epi32(below));
    tally.at_low += static_cast<uint32_t>(_mm512_reduce_add_epi32(at_low));
  }
  const uint32_t most = _mm512_reduce_max_epu32(largest);
  tally.largest = most > tally.largest ? most : tally.largest;
  tally_keys(data + whole, n - whole, in, tally);
}
#endif

// Bytes an element: 2, 4 or 8.
static void tally_block(const void* data, int64_t n, int64_t size, const Interval& in, Tally& tally) {
#if SPARSE_OPS_SCALAR
  if (size == 2) return tally_keys(static_cast<const uint16_t*>(data), n, in, tally);
  if (size == 4) return tally_keys(static_cast<const uint32_t*>(data), n, in, tally);
#else
  if (size == 2) return tally_vectors(static_cast<const uint16_t*>(data), n, in, tally);
  if (size == 4) return tally_vectors(static_cast<const uint32_t*>(data), n, in, tally);
#endif
  tally_keys(static_cast<const uint64_t*>(data), n, in, tally);
}
