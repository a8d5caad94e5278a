// Zeroes the elements whose mask bit is 0: `size` bytes an element, the element's bit is the lowest unread one.

template <typename Word>
static void zero_words(Word* data, const uint8_t* mask, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const Word keep = -static_cast<Word>((mask[i >> 3] >> (i & 7)) & 1);
    data[i] &= keep;
  }
}

#if SPARSE_OPS_AVX512
static void zero_words(uint32_t* data, const uint8_t* mask, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    uint16_t bits;
    std::memcpy(&bits, mask + (i >> 3), 2);
    if (bits == 0xffff) continue;
    _mm512_mask_storeu_epi32(data + i, static_cast<__mmask16>(~bits), _mm512_setzero_si512());
  }
  for (; i < n; ++i)
    if (!((mask[i >> 3] >> (i & 7)) & 1)) data[i] = 0;
}
#endif

static void zero_masked(void* data, const uint8_t* mask, int64_t n, int64_t size) {
  switch (size) {
    case 2: return zero_words(static_cast<uint16_t*>(data), mask, n);
    case 4: return zero_words(static_cast<uint32_t*>(data), mask, n);
    case 8: return zero_words(static_cast<uint64_t*>(data), mask, n);
  }
}
