// Sums of a sparse convolution over lines of images in memory, and what is done to them before they are stored.
#include "lanes_body.h"
#include "sparse_conv2d_activation_body.h"

// The body's types for those of memory that the callers know.
template <typename T>
struct InBody {
  using type = T;
};
template <>
struct InBody<sparse_ops::Half> {
  using type = Half;
};
template <>
struct InBody<sparse_ops::Bfloat> {
  using type = BFloat;
};

template <typename T>
constexpr bool kIsBFloat = false;
template <>
constexpr bool kIsBFloat<BFloat> = true;

// A vector of line p, of which the first `lanes` elements exist; what is beyond them is read as 0 and not written. Only
// AVX-512 masks at no cost: elsewhere `Some` says whether any is missing, and such lines take a path of their own.
#if SPARSE_OPS_AVX512
constexpr bool kMasks = true;
static inline __mmask16 mask_of(int lanes) { return static_cast<__mmask16>(lanes < 16 ? (1u << lanes) - 1 : 0xffff); }
template <bool Some>
static inline Vector<float> load_line(const float* p, int, int lanes) {
  return (Vector<float>)_mm512_maskz_loadu_ps(mask_of(lanes), p);
}
template <bool Some>
static inline Vector<double> load_line(const double* p, int, int lanes) {
  return (Vector<double>)_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask_of(lanes)), p);
}
template <bool Some>
static inline Vector<float> load_line(const BFloat* p, int, int lanes) {
  const __m256i halves = _mm256_maskz_loadu_epi16(mask_of(lanes), p);
  return (Vector<float>)_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
template <bool Some>
static inline Vector<float> load_line(const Half* p, int, int lanes) {
  return (Vector<float>)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask_of(lanes), p));
}
#else
constexpr bool kMasks = false;
template <bool Some, typename T>
static inline auto load_line(const T* p, int v, int lanes) {
  constexpr int W = Lanes<typename Compute<T>::type>::count;
  if constexpr (!Some) return load(p + v * W);
  T some[W] = {};
  const int n = lanes - v * W;
  if (n > 0) std::memcpy(some, p + v * W, (n < W ? n : W) * sizeof(T));
  return load(some);
}
#endif

template <typename T, typename V>
static inline void store_line(T* p, int v, int lanes, const V& x) {
  constexpr int W = Lanes<typename Compute<T>::type>::count;
  const int n = lanes - v * W;
  if (n >= W) return store(p + v * W, x);
  T some[W];
  store(some, x);
  if (n > 0) std::memcpy(p + v * W, some, n * sizeof(T));
}

// Vector v of a line past the caches, where the line is one of the cache's.
#if SPARSE_OPS_AVX512
static inline bool stream_line(float* p, int, const Vector<float>& x) {
  if (reinterpret_cast<uintptr_t>(p) % 64 != 0) return false;
  _mm512_stream_ps(p, (__m512)x);
  return true;
}
template <typename T, typename V>
static inline bool stream_line(T*, int, const V&) {
  return false;
}
static inline void streamed() { _mm_sfence(); }
#elif SPARSE_OPS_AVX2
static inline bool stream_line(float* p, int v, const Vector<float>& x) {
  if (reinterpret_cast<uintptr_t>(p) % 64 != 0) return false;
  _mm256_stream_ps(p + 8 * v, (__m256)x);
  return true;
}
template <typename T, typename V>
static inline bool stream_line(T*, int, const V&) {
  return false;
}
static inline void streamed() { _mm_sfence(); }
#else
template <typename T, typename V>
static inline bool stream_line(T*, int, const V&) {
  return false;
}
static inline void streamed() {}
#endif

// How many pixels are summed at once: enough to hide the adder, few enough that their lines, a pixel apart in memory
// and so in the same sets of the L1 cache, leave each other there (8 pixels instead of 4: a fifth slower).
template <typename T>
constexpr int kMostPixels = SPARSE_OPS_AVX512 ? 4
                            : SPARSE_OPS_AVX2 ? (sizeof(T) == 4 ? 6 : 3)
                                              : (sizeof(T) == 2 ? 1 : 2);

// gcc keeps the sums of three such loops in one function in memory where there are sixteen registers.
#if SPARSE_OPS_AVX2
#define SPARSE_OPS_INLINE __attribute__((noinline))
#else
#define SPARSE_OPS_INLINE inline
#endif

// Adds the entries e .. last to the sums of pixels First .. P - Last of a run; K separate sums each.
template <typename T, int P, int K, bool Some, int First, int Last, typename A>
static SPARSE_OPS_INLINE void add_entries(const T* const (&in)[P], const ConvEntry<A>* e, const ConvEntry<A>* last,
                                          int lanes, Vector<A> (&acc)[K][P][64 / kVectorBytes]) {
  constexpr int N = 64 / kVectorBytes;
  const auto each = [&](const auto& f) {
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k)
#pragma GCC unroll 6
      for (int p = First; p < P - Last; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) f(k, p, v);
  };
  Vector<A> sums[K][P][N];
  each([&](int k, int p, int v) { sums[k][p][v] = acc[k][p][v]; });
  for (; e + K <= last; e += K)
    each([&](int k, int p, int v) { sums[k][p][v] += e[k].value * load_line<Some>(in[p] + e[k].offset, v, lanes); });
  if constexpr (K > 1)
    for (; e < last; ++e)
      each([&](int k, int p, int v) {
        if (k == 0) sums[0][p][v] += e->value * load_line<Some>(in[p] + e->offset, v, lanes);
      });
  each([&](int k, int p, int v) { acc[k][p][v] = sums[k][p][v]; });
}

#undef SPARSE_OPS_INLINE

// Adds the addend, activates and stores the sums of P pixels.
template <typename T, int P, bool Some, typename A>
static inline void finish_run(const ConvLines<A>& lines, const ConvRun& run, int at, int64_t row,
                              Vector<A> (&sums)[P][64 / kVectorBytes]) {
#pragma GCC unroll 6
  for (int p = 0; p < P; ++p) {
    const int64_t to = ((run.out + (at + p) * lines.out_step) * lines.channels + row) * lines.pitch;
#pragma GCC unroll 4
    for (int v = 0; v < 64 / kVectorBytes; ++v) {
      if (lines.addend != nullptr)
        sums[p][v] += load_line<Some>(static_cast<const T*>(lines.addend) + to, v, lines.lanes);
      const Vector<A> y = activated<A>(sums[p][v], lines.activation);
      if (!lines.stream || !stream_line(static_cast<T*>(lines.y) + to, v, y))
        store_line(static_cast<T*>(lines.y) + to, v, lines.lanes, y);
    }
  }
}

// P pixels of a run, from its pixel `at` on, of one target channel; K separate sums each where P alone would wait for
// the adder.
template <typename T, int P, int K, bool Some, typename A>
static void sum_run(const ConvLines<A>& lines, const ConvRun& run, int at, int64_t row) {
  constexpr int N = 64 / kVectorBytes;
  const int64_t pixel = lines.source_channels * lines.pitch;
  const int n = lines.lanes;
  const T* in[P];
#pragma GCC unroll 6
  for (int p = 0; p < P; ++p) in[p] = static_cast<const T*>(lines.x) + (run.in + (at + p) * lines.in_step) * pixel;
  Vector<A> acc[K][P][N];
  const A bias = lines.bias == nullptr ? A{} : lines.bias[row];
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k)
#pragma GCC unroll 6
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) acc[k][p][v] = Vector<A>{} + (k == 0 ? bias : A{});
  const ConvSegment *s = lines.segments + run.first, *end = lines.segments + run.last;
  for (; s < end; ++s) {
    const ConvEntry<A>* e = lines.entries + lines.starts[row * lines.taps + s->begin];
    const ConvEntry<A>* last = lines.entries + lines.starts[row * lines.taps + s->end];
    const bool without_first = s->without_first && at == 0, without_last = s->without_last && at + P == run.pixels;
    if constexpr (P == 1) {
      if (!without_first && !without_last) add_entries<T, P, K, Some, 0, 0>(in, e, last, n, acc);
    } else {
      if (without_first)
        add_entries<T, P, K, Some, 1, 0>(in, e, last, n, acc);
      else if (without_last)
        add_entries<T, P, K, Some, 0, 1>(in, e, last, n, acc);
      else
        add_entries<T, P, K, Some, 0, 0>(in, e, last, n, acc);
    }
  }
#pragma GCC unroll 6
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v)
#pragma GCC unroll 4
      for (int k = 1; k < K; ++k) acc[0][p][v] += acc[k][p][v];
  finish_run<T, P, Some>(lines, run, at, row, acc[0]);
}

#if SPARSE_OPS_AVX512
#define SPARSE_OPS_PAIRS __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")))

// bfloat16 in an instruction that adds the products of two entries: their lines are interleaved, and so are the values.
SPARSE_OPS_PAIRS static inline __m512bh interleaved(__m256i a, __m256i b) {
  const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                         5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  return (__m512bh)_mm512_permutex2var_epi16(_mm512_castsi256_si512(a), order, _mm512_castsi256_si512(b));
}

SPARSE_OPS_PAIRS static inline __m512bh value_pair(float a, float b) {
  uint32_t low, high;
  std::memcpy(&low, &a, 4);
  std::memcpy(&high, &b, 4);
  return (__m512bh)_mm512_set1_epi32(static_cast<int32_t>((low >> 16) | high));
}

template <int P, int First, int Last>
SPARSE_OPS_PAIRS static inline void add_pairs(const BFloat* const (&in)[P], const ConvEntry<float>* e,
                                              const ConvEntry<float>* last, __mmask16 mask, __m512 (&acc)[P]) {
  for (; e < last; e += 2) {
    const bool both = e + 1 < last;
    const __m512bh value = value_pair(e[0].value, both ? e[1].value : 0);
    const __mmask16 second = both ? mask : __mmask16(0);  // zero times an infinity would not be zero
    const int64_t a = e[0].offset, b = both ? e[1].offset : a;
#pragma GCC unroll 6
    for (int p = First; p < P - Last; ++p)
      acc[p] = _mm512_dpbf16_ps(acc[p], interleaved(_mm256_maskz_loadu_epi16(mask, in[p] + a),
                                                    _mm256_maskz_loadu_epi16(second, in[p] + b)), value);
  }
}

template <int P>
SPARSE_OPS_PAIRS static void sum_run_pairs(const ConvLines<float>& lines, const ConvRun& run, int64_t row) {
  const int64_t pixel = lines.source_channels * lines.pitch;
  const __mmask16 mask = mask_of(lines.lanes);
  const BFloat* in[P];
  __m512 acc[P];
#pragma GCC unroll 6
  for (int p = 0; p < P; ++p) {
    in[p] = static_cast<const BFloat*>(lines.x) + (run.in + p * lines.in_step) * pixel;
    acc[p] = _mm512_set1_ps(lines.bias == nullptr ? 0 : lines.bias[row]);
  }
  const ConvSegment *s = lines.segments + run.first, *end = lines.segments + run.last;
  for (; s < end; ++s) {
    const ConvEntry<float>* e = lines.entries + lines.starts[row * lines.taps + s->begin];
    const ConvEntry<float>* last = lines.entries + lines.starts[row * lines.taps + s->end];
    if (P > 1 && s->without_first)
      add_pairs<P, (P > 1), 0>(in, e, last, mask, acc);
    else if (P > 1 && s->without_last)
      add_pairs<P, 0, (P > 1)>(in, e, last, mask, acc);
    else
      add_pairs<P, 0, 0>(in, e, last, mask, acc);
  }
  Vector<float> sums[P][1];
  std::memcpy(sums, acc, sizeof(sums));
  finish_run<BFloat, P, false>(lines, run, 0, row, sums);
}
#include "sparse_conv2d_dense_body.h"
#endif

template <typename T, int P, typename A>
static inline void whole_run(const ConvLines<A>& lines, const ConvRun& run, int64_t row, int64_t rows) {
#if SPARSE_OPS_AVX512
  if constexpr (P <= kMostPixels<T>)
    if (rows == kRows) {
      if constexpr (kIsBFloat<T>)
        if (lines.pairs) return sum_dense_pairs<P>(lines, run, row);
      return sum_dense<T, P>(lines, run, row);
    }
  if constexpr (kIsBFloat<T>)
    if (lines.pairs) return sum_run_pairs<P>(lines, run, row);
#endif
  constexpr int K = P == 1 ? 4 : P == 2 ? (kVectorBytes == 64 ? 4 : 2) : P == 3 && kVectorBytes == 64 ? 2 : 1;
  if constexpr (P <= kMostPixels<T>) sum_run<T, P, kVectorBytes == 16 ? 1 : K, false>(lines, run, 0, row);
}

// The target channels row .. row + rows: one, or kRows of a dense weight.
template <typename T, typename A>
static inline void sum_pixels(const ConvLines<A>& lines, const ConvRun& run, int64_t row, int64_t rows) {
  if constexpr (!kMasks)
    if (lines.lanes < 64 / static_cast<int>(sizeof(A))) {
      for (int p = 0; p < run.pixels; ++p) sum_run<T, 1, 1, true>(lines, run, p, row);
      return;
    }
  switch (run.pixels) {
    case 1: return whole_run<T, 1>(lines, run, row, rows);
    case 2: return whole_run<T, 2>(lines, run, row, rows);
    case 3: return whole_run<T, 3>(lines, run, row, rows);
    case 4: return whole_run<T, 4>(lines, run, row, rows);
    case 5: return whole_run<T, 5>(lines, run, row, rows);
    case 6: return whole_run<T, 6>(lines, run, row, rows);
  }
}

template <typename T, typename A>
static void sum_tile(const ConvLines<A>& lines, const ConvTile& tile, const ConvTile* next, int64_t begin,
                     int64_t end) {
  // While a tile is worked on, what the next one reads first is fetched into the L2 cache, a share with each channel.
  const char *fetch = nullptr, *stop = nullptr;
  const int64_t line = lines.pitch * static_cast<int64_t>(sizeof(T)), step = line < 64 ? 64 : line;
  int64_t ahead = 0;
  if (next != nullptr && next->fetch_count > 0) {
    fetch = static_cast<const char*>(lines.x) + next->fetch * lines.source_channels * line;
    stop = fetch + next->fetch_count * lines.source_channels * line;
    ahead = (stop - fetch) / ((tile.last - tile.first) * (end - begin));
    ahead = ahead * (lines.dense ? sparse_ops::kDenseRows : 1) + step;
  }
  const auto fetch_some = [&] {
    for (const char* until = stop - fetch < ahead ? stop : fetch + ahead; fetch < until; fetch += step)
      __builtin_prefetch(fetch, 0, 2);
  };
  const ConvRun *runs = lines.runs + tile.first, *last = lines.runs + tile.last;
  constexpr int64_t kDense = sparse_ops::kDenseRows;
  int64_t row = begin;
  if (lines.dense)  // the entries of kDense channels in L1 rather than the lines of a run
    for (; row + kDense <= end; row += kDense)
      for (const ConvRun* run = runs; run < last; ++run) fetch_some(), sum_pixels<T>(lines, *run, row, kDense);
  for (const ConvRun* run = runs; run < last; ++run)
    for (int64_t r = row; r < end; ++r) fetch_some(), sum_pixels<T>(lines, *run, r, 1);
}

// Target channels begin .. end of a tile; `next` is the tile that this thread works on next, if any.
template <typename M>
static void line_sums(const ConvLines<Accumulator<M>>& lines, const ConvTile& tile, const ConvTile* next, int64_t begin,
                      int64_t end) {
  sum_tile<typename InBody<M>::type>(lines, tile, next, begin, end);
  if (lines.stream) streamed();
}

template <typename M>
static int most_line_pixels() {
  return kMostPixels<typename InBody<M>::type>;
}
