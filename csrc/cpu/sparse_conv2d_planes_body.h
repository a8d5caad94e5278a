// Copies of pixels into planes and of runs back: transposes, rows, and every second element of rows.
#include "sparse_conv2d_lanes_body.h"

// Every `stride`-th element of a row, n of them, widened.
template <typename T>
static void stage_phase(const T* src, int64_t stride, int64_t n, Accumulator<T>* dst) {
  int64_t j = 0;
#if SPARSE_OPS_AVX512
  if constexpr (sizeof(Accumulator<T>) == 4) {
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    if (stride == 2)
      for (; j < n; j += 16) {  // the last element that is read is the last that is wanted
        const int64_t rest = 2 * (n - j) - 1;
        const uint64_t k = rest < 32 ? (uint64_t{1} << rest) - 1 : ~uint64_t{0};
        const __m512 low = load_row(src + 2 * j, static_cast<__mmask16>(k));
        const __m512 high = load_row(src + 2 * j + 16, static_cast<__mmask16>(k >> 16));
        const __mmask16 kept = n - j < 16 ? static_cast<__mmask16>((1u << (n - j)) - 1) : __mmask16(0xffff);
        _mm512_mask_storeu_ps(dst + j, kept, _mm512_permutex2var_ps(low, even, high));
      }
  }
#elif SPARSE_OPS_AVX2
  if constexpr (sizeof(Accumulator<T>) == 4)
    if (stride == 2)
      for (; j + 8 < n; j += 8) {  // with one more to come, the last element that is read lies before it
        const __m256 pairs = _mm256_shuffle_ps(load_row(src + 2 * j), load_row(src + 2 * j + 8), 0x88);
        _mm256_storeu_ps(dst + j, _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(pairs), 0xd8)));
      }
#endif
  for (; j < n; ++j) dst[j] = widen(src[j * stride]);
}

// A run of accumulators rounded into the target.
template <typename T>
static void narrow_run(const Accumulator<T>* from, int64_t n, T* to) {
  int64_t j = 0;
#if SPARSE_OPS_AVX512
  if constexpr (sizeof(Accumulator<T>) == 4)
    for (; j < n; j += 16) {
      const __mmask16 k = n - j < 16 ? static_cast<__mmask16>((1u << (n - j)) - 1) : __mmask16(0xffff);
      store_row(to + j, k, _mm512_maskz_loadu_ps(k, from + j));
    }
#elif SPARSE_OPS_AVX2
  if constexpr (sizeof(Accumulator<T>) == 4)
    if (n >= 8) {
      for (; j + 8 <= n; j += 8) store_row(to + j, _mm256_loadu_ps(from + j));
      if (j < n) store_row(to + n - 8, _mm256_loadu_ps(from + n - 8));
      return;
    }
#endif
  for (; j < n; ++j) narrow(from[j], to + j);
}

// The same past the caches, where the target's lines are whole: none is read before it is written.
template <typename T>
static void stream_run(const Accumulator<T>* from, int64_t n, T* to) {
#if !SPARSE_OPS_SCALAR
  if constexpr (sizeof(T) == sizeof(Accumulator<T>)) {
    constexpr int64_t L = 64 / sizeof(T);
    const int64_t head = (L - static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) / sizeof(T) % L)) % L;
    int64_t j = head < n ? head : n;
    narrow_run<T>(from, j, to);
    for (; j + L <= n; j += L) {
#if SPARSE_OPS_AVX512
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to + j), _mm512_loadu_si512(from + j));
#else
      const __m256i* pair = reinterpret_cast<const __m256i*>(from + j);
      const __m256i low = _mm256_loadu_si256(pair), high = _mm256_loadu_si256(pair + 1);
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to + j), low);
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to + j) + 1, high);
#endif
    }
    return narrow_run<T>(from + j, n - j, to + j);
  }
#endif
  narrow_run<T>(from, n, to);
}

// scatter of whole lines, past the caches.
static void scatter_past(const float* slab, int64_t stride, float* const* dst) {
#if SPARSE_OPS_AVX512
  __m512 r[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = _mm512_load_ps(slab + i * stride);
  transpose(r);
#pragma GCC unroll 16
  for (int l = 0; l < 16; ++l) _mm512_stream_ps(dst[l], r[l]);
#elif SPARSE_OPS_AVX2
  for (int lane = 0; lane < 16; lane += 8) {
    __m256 low[8], high[8];  // of a lane's line
    for (int i = 0; i < 8; ++i) low[i] = _mm256_load_ps(slab + i * stride + lane);
    transpose(low);
    for (int i = 0; i < 8; ++i) high[i] = _mm256_load_ps(slab + (8 + i) * stride + lane);
    transpose(high);
    for (int l = 0; l < 8; ++l) {
      _mm256_stream_ps(dst[lane + l], low[l]);
      _mm256_stream_ps(dst[lane + l] + 8, high[l]);
    }
  }
#else
  for (int64_t l = 0; l < 16; ++l)
    for (int64_t i = 0; i < 16; ++i) dst[l][i] = slab[i * stride + l];
#endif
}

static void streamed() {
#if !SPARSE_OPS_SCALAR
  _mm_sfence();
#endif
}
