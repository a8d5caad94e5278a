// Packs (key > threshold) and (key >= threshold) and counts the keys that equal the threshold.
#include "widen.h"

template <typename Word>
static int64_t pack_keys(const Word* data, int64_t n, Word threshold, bool keep_equal, uint8_t* mask) {
  constexpr Word magnitude = static_cast<Word>(~static_cast<Word>(0)) >> 1;
  int64_t equal = 0;
  for (int64_t i = 0; i < n; i += 8) {
    const int64_t end = n - i < 8 ? n - i : 8;
    unsigned bits = 0xffu << end;  // padding is kept
    for (int64_t j = 0; j < end; ++j) {
      Word key;
      std::memcpy(&key, data + i + j, sizeof(Word));  // the block may have been written as floats
      key &= magnitude;
      equal += key == threshold;
      bits |= static_cast<unsigned>(key > threshold || (keep_equal && key == threshold)) << j;
    }
    mask[i >> 3] = static_cast<uint8_t>(bits);
  }
  return equal;
}

#if SPARSE_OPS_AVX2
static inline __m256i load_words(const uint32_t* p) {
  return _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), _mm256_set1_epi32(0x7fffffff));
}

static inline __m256i load_words(const uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_and_si256(wide, _mm256_set1_epi32(0x7fff));
}

template <typename Word>
static int64_t pack_vectors(const Word* data, int64_t n, Word threshold, bool keep_equal, uint8_t* mask) {
  const __m256i limit = _mm256_set1_epi32(static_cast<int>(threshold));
  int64_t i = 0, equal = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256i key = load_words(data + i);
    const int more = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(key, limit)));
    const int same = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(key, limit)));
    equal += __builtin_popcount(static_cast<unsigned>(same));
    mask[i >> 3] = static_cast<uint8_t>(keep_equal ? more | same : more);
  }
  return equal + pack_keys(data + i, n - i, threshold, keep_equal, mask + (i >> 3));
}
#endif

#if SPARSE_OPS_AVX512
static inline __m512i load_words(const uint32_t* p) {
  return _mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(0x7fffffff));
}

static inline __m512i load_words(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_and_si512(wide, _mm512_set1_epi32(0x7fff));
}

template <typename Word>
static int64_t pack_vectors(const Word* data, int64_t n, Word threshold, bool keep_equal, uint8_t* mask) {
  const __m512i limit = _mm512_set1_epi32(static_cast<int>(threshold));
  int64_t i = 0, equal = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512i key = load_words(data + i);
    const uint16_t more = _mm512_cmpgt_epu32_mask(key, limit), same = _mm512_cmpeq_epu32_mask(key, limit);
    equal += __builtin_popcount(same);
    const uint16_t bits = keep_equal ? more | same : more;
    std::memcpy(mask + (i >> 3), &bits, 2);
  }
  return equal + pack_keys(data + i, n - i, threshold, keep_equal, mask + (i >> 3));
}
#endif

// n elements of type `type`, compared in the promoted type; returns how many equal the threshold.
static int64_t pack_mask(const void* data, Float type, Float promoted, int64_t n, uint64_t threshold, bool keep_equal,
                         uint8_t* mask) {
  alignas(64) double buffer[kWidenBlock];
  const int64_t block = type == promoted ? n : kWidenBlock, from = size_of(type);
  int64_t equal = 0;
  for (int64_t i = 0; i < n; i += block) {
    const int64_t count = n - i < block ? n - i : block;
    const void* keys = widen(static_cast<const char*>(data) + i * from, type, promoted, count, buffer);
    switch (size_of(promoted)) {
#if SPARSE_OPS_SCALAR
#define SPARSE_OPS_PACK pack_keys
#else
#define SPARSE_OPS_PACK pack_vectors
#endif
      case 2:
        equal += SPARSE_OPS_PACK(static_cast<const uint16_t*>(keys), count, static_cast<uint16_t>(threshold),
                                 keep_equal, mask + i / 8);
        break;
      case 4:
        equal += SPARSE_OPS_PACK(static_cast<const uint32_t*>(keys), count, static_cast<uint32_t>(threshold),
                                 keep_equal, mask + i / 8);
        break;
      default: equal += pack_keys(static_cast<const uint64_t*>(keys), count, threshold, keep_equal, mask + i / 8);
#undef SPARSE_OPS_PACK
    }
  }
  return equal;
}
