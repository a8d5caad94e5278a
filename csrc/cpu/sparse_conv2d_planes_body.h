// Copies of pixels into planes: transposes, rows, and every second element of rows.
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
