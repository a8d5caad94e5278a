// Transposes between memory and lanes: element j of lane l stands at slab[j * stride + l], 64 bytes for all lanes.

template <typename T>
static void gather_plain(const T* const* src, int64_t begin, int64_t n, Accumulator<T>* slab, int64_t stride) {
  constexpr int64_t kLanes = 64 / sizeof(Accumulator<T>);
  for (int64_t j = begin; j < n; ++j)
    for (int64_t l = 0; l < kLanes; ++l) slab[j * stride + l] = widen(src[l][j]);
}

template <typename T>
static void scatter_plain(const Accumulator<T>* slab, int64_t stride, int64_t begin, int64_t n, T* const* dst) {
  constexpr int64_t kLanes = 64 / sizeof(Accumulator<T>);
  for (int64_t l = 0; l < kLanes; ++l)
    for (int64_t j = begin; j < n; ++j) narrow(slab[j * stride + l], dst[l] + j);
}

#if SPARSE_OPS_AVX512
static inline __m512 load_row(const float* p, __mmask16 k) { return _mm512_maskz_loadu_ps(k, p); }
static inline __m512 load_row(const Half* p, __mmask16 k) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(k, p)); }
static inline __m512 load_row(const Bfloat* p, __mmask16 k) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(k, p)), 16));
}
static inline void store_row(float* p, __mmask16 k, __m512 x) { _mm512_mask_storeu_ps(p, k, x); }
static inline void store_row(Half* p, __mmask16 k, __m512 x) {
  _mm256_mask_storeu_epi16(p, k, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline void store_row(Bfloat* p, __mmask16 k, __m512 x) {
  const __m512i u = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i rounded = _mm512_mask_mov_epi32(_mm512_srli_epi32(up, 16), _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q),
                                                _mm512_set1_epi32(0x7fc0));
  _mm256_mask_storeu_epi16(p, k, _mm512_cvtepi32_epi16(rounded));
}

static inline void transpose(__m512 (&r)[16]) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int h = 0; h < 2; ++h) {
      const __m512d a = _mm512_castps_pd(t[i + h]), b = _mm512_castps_pd(t[i + h + 2]);
      r[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      r[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
  }
}

template <typename T>
static void gather_lanes(const T* const* src, int64_t n, float* slab, int64_t stride) {
  for (int64_t j = 0; j < n; j += 16) {
    const int count = n - j < 16 ? static_cast<int>(n - j) : 16;
    const __mmask16 k = static_cast<__mmask16>((1u << count) - 1);
    __m512 r[16];
#pragma GCC unroll 16
    for (int l = 0; l < 16; ++l) r[l] = load_row(src[l] + j, k);
    transpose(r);
    if (count == 16) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) _mm512_store_ps(slab + (j + i) * stride, r[i]);
    } else {
      for (int i = 0; i < count; ++i) _mm512_store_ps(slab + (j + i) * stride, r[i]);
    }
  }
}

template <typename T>
static inline void scatter_lanes(const float* slab, int64_t stride, int64_t n, T* const* dst) {
  for (int64_t j = 0; j < n; j += 16) {
    const int count = n - j < 16 ? static_cast<int>(n - j) : 16;
    const __mmask16 k = static_cast<__mmask16>((1u << count) - 1);
    __m512 r[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = _mm512_load_ps(slab + (j + (i < count ? i : 0)) * stride);
    transpose(r);
#pragma GCC unroll 16
    for (int l = 0; l < 16; ++l) store_row(dst[l] + j, k, r[l]);
  }
}
#elif SPARSE_OPS_AVX2
static inline __m256 load_row(const float* p) { return _mm256_loadu_ps(p); }
static inline __m256 load_row(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline __m256 load_row(const Bfloat* p) {
  const __m256i u = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(u, 16));
}

static inline void store_row(float* p, __m256 x) { _mm256_storeu_ps(p, x); }
static inline void store_row(Half* p, __m256 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline void store_row(Bfloat* p, __m256 x) {
  const __m256i u = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i words = _mm256_blendv_epi8(_mm256_srli_epi32(up, 16), _mm256_set1_epi32(0x7fc0), nan);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

static inline void transpose(__m256 (&r)[8]) {
  __m256 t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int h = 0; h < 2; ++h) {
      r[i + 2 * h] = _mm256_shuffle_ps(t[i + h], t[i + h + 2], 0x44);
      r[i + 2 * h + 1] = _mm256_shuffle_ps(t[i + h], t[i + h + 2], 0xee);
    }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
    t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
  }
  for (int i = 0; i < 8; ++i) r[i] = t[i];
}

template <typename T>
static void gather_lanes(const T* const* src, int64_t n, float* slab, int64_t stride) {
  int64_t j = 0;
  for (; j + 8 <= n; j += 8)
    for (int half = 0; half < 16; half += 8) {
      __m256 r[8];
      for (int l = 0; l < 8; ++l) r[l] = load_row(src[half + l] + j);
      transpose(r);
      for (int i = 0; i < 8; ++i) _mm256_store_ps(slab + (j + i) * stride + half, r[i]);
    }
  gather_plain(src, j, n, slab, stride);
}

template <typename T>
static inline void scatter_lanes(const float* slab, int64_t stride, int64_t n, T* const* dst) {
  int64_t j = 0;
  for (; j + 8 <= n; j += 8)
    for (int half = 0; half < 16; half += 8) {
      __m256 r[8];
      for (int i = 0; i < 8; ++i) r[i] = _mm256_load_ps(slab + (j + i) * stride + half);
      transpose(r);
      for (int l = 0; l < 8; ++l) store_row(dst[half + l] + j, r[l]);
    }
  scatter_plain(slab, stride, j, n, dst);
}
#else
template <typename T>
static void gather_lanes(const T* const* src, int64_t n, float* slab, int64_t stride) {
  gather_plain(src, 0, n, slab, stride);
}
template <typename T>
static inline void scatter_lanes(const float* slab, int64_t stride, int64_t n, T* const* dst) {
  scatter_plain(slab, stride, 0, n, dst);
}
#endif

static inline void gather_lanes(const double* const* src, int64_t n, double* slab, int64_t stride) {
  gather_plain(src, 0, n, slab, stride);
}
static inline void scatter_lanes(const double* slab, int64_t stride, int64_t n, double* const* dst) {
  scatter_plain(slab, stride, 0, n, dst);
}

template <typename T>
static void gather(const T* const* src, int64_t n, Accumulator<T>* slab, int64_t stride) {
  gather_lanes(src, n, slab, stride);
}
template <typename T>
static void scatter(const Accumulator<T>* slab, int64_t stride, int64_t n, T* const* dst) {
  scatter_lanes(slab, stride, n, dst);
}

// `rows` rows of n elements, widened, from one image to a lane's own memory. Short runs far apart defeat the hardware's
// prefetching, so each run asks for the one `ahead` elements later.
template <typename T>
static void stage(const T* src, int64_t src_pitch, int64_t rows, int64_t n, int64_t ahead, Accumulator<T>* dst,
                  int64_t dst_pitch) {
  for (int64_t r = 0; r < rows; ++r, src += src_pitch, dst += dst_pitch) {
    for (int64_t j = 0; j < n; j += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(src + j + ahead, 0, 2);
    __builtin_prefetch(src + n - 1 + ahead, 0, 2);
    int64_t j = 0;
#if SPARSE_OPS_AVX512
    if constexpr (sizeof(Accumulator<T>) == 4)
      for (; j < n; j += 16) {
        const __mmask16 k = n - j < 16 ? static_cast<__mmask16>((1u << (n - j)) - 1) : __mmask16(0xffff);
        _mm512_mask_storeu_ps(dst + j, k, load_row(src + j, k));
      }
#elif SPARSE_OPS_AVX2
    if constexpr (sizeof(Accumulator<T>) == 4)
      if (n >= 8) {
        for (; j + 8 <= n; j += 8) _mm256_storeu_ps(dst + j, load_row(src + j));
        if (j < n) _mm256_storeu_ps(dst + n - 8, load_row(src + n - 8));
        j = n;
      }
#endif
    for (; j < n; ++j) dst[j] = widen(src[j]);
  }
}
