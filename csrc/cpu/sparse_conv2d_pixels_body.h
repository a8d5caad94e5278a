// Sums over planes of pixels: a line is 64 bytes of accumulators at any distance from another.

#if SPARSE_OPS_AVX512
constexpr int kVector = 64, kLines = 8;
#elif SPARSE_OPS_AVX2
constexpr int kVector = 32, kLines = 6;
#else
constexpr int kVector = 16, kLines = 3;
#endif

#include "some_lanes_body.h"
#include "sparse_conv2d_activation_body.h"

template <typename A>
struct VectorOf {
  typedef A type __attribute__((vector_size(kVector), may_alias));
  typedef A unaligned __attribute__((vector_size(kVector), may_alias, aligned(sizeof(A))));
};

#if SPARSE_OPS_AVX512
static inline __m512 compressed(__m512 x, unsigned mask) {
  return _mm512_maskz_compress_ps(static_cast<__mmask16>(mask), x);
}
static inline __m512d compressed(__m512d x, unsigned mask) {
  return _mm512_maskz_compress_pd(static_cast<__mmask8>(mask), x);
}
static inline __m512 loaded(const float* p, unsigned n) { return _mm512_maskz_loadu_ps(static_cast<__mmask16>(n), p); }
static inline __m512d loaded(const double* p, unsigned n) { return _mm512_maskz_loadu_pd(static_cast<__mmask8>(n), p); }
static inline void stored(float* p, unsigned n, __m512 x) { _mm512_mask_storeu_ps(p, static_cast<__mmask16>(n), x); }
static inline void stored(double* p, unsigned n, __m512d x) { _mm512_mask_storeu_pd(p, static_cast<__mmask8>(n), x); }
#endif

// The pixels of a line behind each other into out, through what is in `add` (null: nothing) and the activation.
template <typename A>
static inline void put_line(const typename VectorOf<A>::type* sums, const ConvLine& line, const A* add,
                            ConvActivation activation, A* out) {
  using V = typename VectorOf<A>::type;
  using U = typename VectorOf<A>::unaligned;
  constexpr int L = 64 / sizeof(A), W = kVector / sizeof(A), N = 64 / kVector;
  if (line.count == L) {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      V sum = sums[v];
      if (add != nullptr) sum += *reinterpret_cast<const U*>(add + line.at + v * W);
      *reinterpret_cast<U*>(out + line.at + v * W) = activated<A>(sum, activation);
    }
    return;
  }
#if SPARSE_OPS_AVX512
  const unsigned n = (1u << line.count) - 1;
  V sum = (V)compressed(sums[0], line.mask);
  if (add != nullptr) sum += (V)loaded(add + line.at, n);
  stored(out + line.at, n, activated<A>(sum, activation));
#else
#if SPARSE_OPS_AVX2
  if constexpr (sizeof(A) == 4) {
    int64_t at = line.at;
#pragma GCC unroll 2
    for (int v = 0; v < N; ++v) {
      const unsigned mask = line.mask >> 8 * v & 0xff;
      const int n = __builtin_popcount(mask);
      V sum = (V)compressed((__m256)sums[v], mask);
      if (add != nullptr) sum += (V)_mm256_maskload_ps(add + at, first_lanes(n));
      const __m256 y = (__m256)activated<A>(sum, activation);
      if (line.room >= L)  // what is written beyond the line belongs to the image's next ones
        _mm256_storeu_ps(out + at, y);
      else
        _mm256_maskstore_ps(out + at, first_lanes(n), y);
      at += n;
    }
    return;
  }
#endif
  alignas(64) A lanes[L];
  for (int v = 0; v < N; ++v) *reinterpret_cast<V*>(lanes + v * W) = sums[v];
  int n = 0;
  for (int l = 0; l < L; ++l)
    if (line.mask >> l & 1) lanes[n++] = lanes[l];
  for (int i = 0; i < n; ++i) lanes[i] += add == nullptr ? A{} : add[line.at + i];
  for (int v = 0; v < N; ++v) {
    V* part = reinterpret_cast<V*>(lanes + v * W);
    *part = activated<A>(*part, activation);
  }
  for (int i = 0; i < n; ++i) out[line.at + i] = lanes[i];
#endif
}

// P lines at once, in registers; K separate sums each where P alone would wait for the adder.
template <typename A, int P, int K>
static inline void sum_lines(const A* in, const ConvLine* lines, const ConvEntry<A>* e, int64_t n, A bias, const A* add,
                             ConvActivation activation, A* out) {
  using V = typename VectorOf<A>::type;
  using U = typename VectorOf<A>::unaligned;
  constexpr int L = 64 / sizeof(A), W = kVector / sizeof(A), N = 64 / kVector;
  V acc[K][P][N];
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k)
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) acc[k][p][v] = k == 0 ? V{} + bias : V{};
  const auto add_entry = [&](const ConvEntry<A>& entry, V(&sums)[P][N]) {
    const A* from = in + entry.offset;
    const V value = V{} + entry.value;
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) sums[p][v] += value * *reinterpret_cast<const U*>(from + p * L + v * W);
  };
  int64_t i = 0;
  for (; i + K <= n; i += K)
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) add_entry(e[i + k], acc[k]);
  for (; i < n; ++i) add_entry(e[i], acc[0]);
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int k = 1; k < K; ++k)
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) acc[0][p][v] += acc[k][p][v];
    put_line<A>(acc[0][p], lines[p], add, activation, out);
  }
}

// One target channel of one run: all `count` lines, which follow each other, in blocks of about the same size.
template <typename A>
static void sum_run(const A* in, const ConvLine* lines, int64_t count, const ConvEntry<A>* e, int64_t n, A bias,
                    const A* add, ConvActivation activation, A* out) {
  constexpr int L = 64 / sizeof(A);
  const int64_t blocks = (count + kLines - 1) / kLines;
  for (int64_t b = 0, first = 0; b < blocks; ++b) {
    const int64_t last = (b + 1) * count / blocks;
    const A* from = in + first * L;
    switch (last - first) {
      case 1: sum_lines<A, 1, 4>(from, lines + first, e, n, bias, add, activation, out); break;
      case 2: sum_lines<A, 2, kVector == 64 ? 4 : 2>(from, lines + first, e, n, bias, add, activation, out); break;
      case 3: sum_lines<A, 3, kVector == 64 ? 2 : 1>(from, lines + first, e, n, bias, add, activation, out); break;
#if !SPARSE_OPS_SCALAR
      case 4: sum_lines<A, 4, kVector == 64 ? 2 : 1>(from, lines + first, e, n, bias, add, activation, out); break;
      case 5: sum_lines<A, 5, 1>(from, lines + first, e, n, bias, add, activation, out); break;
      case 6: sum_lines<A, 6, 1>(from, lines + first, e, n, bias, add, activation, out); break;
#endif
#if SPARSE_OPS_AVX512
      case 7: sum_lines<A, 7, 1>(from, lines + first, e, n, bias, add, activation, out); break;
      case 8: sum_lines<A, 8, 1>(from, lines + first, e, n, bias, add, activation, out); break;
#endif
    }
    first = last;
  }
}
