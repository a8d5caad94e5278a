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
#endif
  for (; j < n; ++j) narrow(from[j], to + j);
}

// The same past the caches, where the target's lines are whole: none is read before it is written.
template <typename T>
static void stream_run(const Accumulator<T>* from, int64_t n, T* to) {
#if SPARSE_OPS_AVX512
  if constexpr (sizeof(T) == sizeof(Accumulator<T>)) {
    constexpr int64_t L = 64 / sizeof(T);
    const int64_t head = (L - static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) / sizeof(T) % L)) % L;
    int64_t j = head < n ? head : n;
    narrow_run<T>(from, j, to);
    for (; j + L <= n; j += L)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to + j), _mm512_loadu_si512(from + j));
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
#else
  for (int64_t l = 0; l < 16; ++l)
    for (int64_t i = 0; i < 16; ++i) dst[l][i] = slab[i * stride + l];
#endif
}

static void streamed() {
#if SPARSE_OPS_AVX512
  _mm_sfence();
#endif
}
