// Dot products of lines of x with lines of dy: a few pixels of dy at one target channel stay in registers while the
// entries of that channel pass, each leaves one vector of sums, and a square of such vectors is summed at once.
#include "lanes_body.h"
#include "sums_body.h"

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

// A vector of line p, of which the lanes in `mask` exist; the others are read as 0. Only AVX-512 masks at no cost:
// elsewhere `Some` says whether any is missing.
#if SPARSE_OPS_AVX512
constexpr bool kMasks = true;
template <bool Some>
static inline Vector<float> load_line(const float* p, int, uint32_t mask) {
  return (Vector<float>)_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p);
}
template <bool Some>
static inline Vector<double> load_line(const double* p, int, uint32_t mask) {
  return (Vector<double>)_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), p);
}
template <bool Some>
static inline Vector<float> load_line(const BFloat* p, int, uint32_t mask) {
  const __m256i halves = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), p);
  return (Vector<float>)_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
template <bool Some>
static inline Vector<float> load_line(const Half* p, int, uint32_t mask) {
  return (Vector<float>)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), p));
}
#else
constexpr bool kMasks = false;
template <bool Some, typename T>
static inline auto load_line(const T* p, int v, uint32_t mask) {
  constexpr int W = Lanes<typename Compute<T>::type>::count;
  if constexpr (!Some) return load(p + v * W);
  T some[W] = {};
  for (int i = 0; i < W; ++i)
    if (mask >> (v * W + i) & 1) some[i] = p[v * W + i];
  return load(some);
}
#endif

// How many pixels of dy are held in registers at once.
template <typename T>
constexpr int kPixels = SPARSE_OPS_AVX512 ? 8 : SPARSE_OPS_AVX2 ? 4 : 2;

// Vectors of sums of entries that follow each other, the next of which is `next`.
template <typename A>
struct Pending {
  alignas(64) A vectors[Lanes<A>::count * Lanes<A>::count];
  int64_t next;
  int count;
};

template <typename A>
static void flush(Pending<A>& pending, double* sums) {
  constexpr int W = Lanes<A>::count;
  alignas(64) A some[W];
  store(some, sums_of<A>(pending.vectors));
  double* to = sums + pending.next - pending.count;
  if (pending.count == W) {
    for (int i = 0; i < W; ++i) to[i] += some[i];
  } else {
    for (int i = 0; i < pending.count; ++i) to[i] += some[i];
  }
  pending.count = 0;
}

template <typename A>
static inline void leave(Pending<A>& pending, const Vector<A>& sum, double* sums) {
  store(pending.vectors + pending.count * Lanes<A>::count, sum);
  ++pending.next;
  if (++pending.count == Lanes<A>::count) flush(pending, sums);
}

// The entries begin .. end with pixels First .. P - Last.
template <typename T, int P, bool Some, int First, int Last, typename A>
static inline void dot_entries(const T* const (&in)[P], const Vector<A> (&dy)[P][64 / kVectorBytes],
                               const ConvDots& dots, int64_t begin, int64_t end, uint32_t mask, Pending<A>& pending) {
  constexpr int N = 64 / kVectorBytes, K = P - First - Last > 3 && N == 1 ? 2 : 1;
  for (int64_t e = begin; e < end; ++e) {
    const int64_t offset = dots.offsets[e];
    Vector<A> acc[K][N];
#pragma GCC unroll 8
    for (int p = First; p < P - Last; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) {
        const auto product = dy[p][v] * load_line<Some>(in[p] + offset, v, mask);
        if (p - First < K)
          acc[p - First][v] = product;
        else
          acc[(p - First) % K][v] += product;
      }
#pragma GCC unroll 4
    for (int v = 1; v < N; ++v) acc[0][0] += acc[0][v];
    if constexpr (K == 2) acc[0][0] += acc[1][0];
    leave<A>(pending, acc[0][0], dots.sums);
  }
}

// P pixels of a run from its pixel `at` on, all target channels begin .. end.
template <typename T, int P, bool Some>
static void dot_run(const ConvDots& dots, const ConvRun& run, int at, uint32_t mask, int64_t begin, int64_t end,
                    const char* fetch, int64_t ahead) {
  using A = typename Compute<T>::type;
  constexpr int N = 64 / kVectorBytes;
  const T* in[P];
  const T* from[P];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    in[p] = static_cast<const T*>(dots.x) + (run.in + (at + p) * dots.in_step) * dots.x_pixel;
    from[p] = static_cast<const T*>(dots.dy) + (run.out + (at + p) * dots.out_step) * dots.dy_pixel;
  }
  Pending<A> pending;
  std::memset(pending.vectors, 0, sizeof(pending.vectors));
  pending.count = 0;
  pending.next = 0;
  for (int64_t row = begin; row < end; ++row) {
    for (const char* until = fetch + ahead; fetch < until; fetch += 64) __builtin_prefetch(fetch, 0, 2);
    const int32_t* starts = dots.starts + row * dots.taps;
    if (starts[0] == starts[dots.taps]) continue;
    Vector<A> dy[P][N];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) dy[p][v] = load_line<Some>(from[p] + row * dots.pitch, v, mask);
    for (const ConvSegment* s = dots.segments + run.first; s < dots.segments + run.last; ++s) {
      const int64_t e = starts[s->begin], last = starts[s->end];
      if (e == last) continue;
      const bool without_first = s->without_first && at == 0, without_last = s->without_last && at + P == run.pixels;
      if (P == 1 && (without_first || without_last)) continue;
      if (e != pending.next) {
        if (pending.count > 0) flush(pending, dots.sums);
        pending.next = e;
      }
      if (without_first)
        dot_entries<T, P, Some, (P > 1), 0>(in, dy, dots, e, last, mask, pending);
      else if (without_last)
        dot_entries<T, P, Some, 0, (P > 1)>(in, dy, dots, e, last, mask, pending);
      else
        dot_entries<T, P, Some, 0, 0>(in, dy, dots, e, last, mask, pending);
    }
  }
  if (pending.count > 0) flush(pending, dots.sums);
}

#if SPARSE_OPS_AVX512
#define SPARSE_OPS_PAIRS __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")))

// The same for bfloat16 with an instruction that adds the products of two neighbours: the lines of two pixels are one
// vector. low, high: the lanes of the first and the second.
SPARSE_OPS_PAIRS static inline __m512i two_lines(const BFloat* a, const BFloat* b, __mmask16 low, __mmask16 high) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_maskz_loadu_epi16(low, a)),
                            _mm256_maskz_loadu_epi16(high, b), 1);
}

template <int P, int First, int Last>
SPARSE_OPS_PAIRS static inline void dot_pairs(const BFloat* const (&in)[P], const __m512i (&dy)[(P + 1) / 2],
                                              const ConvDots& dots, int64_t begin, int64_t end, __mmask16 mask,
                                              Pending<float>& pending) {
  constexpr int Q = (P + 1) / 2;
  for (int64_t e = begin; e < end; ++e) {
    const int64_t offset = dots.offsets[e];
    __m512 acc = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      // Pixels that are left out are neither read nor multiplied: zero times an infinity would not be zero.
      const bool none_low = (First && q == 0) || (Last && 2 * q == P - 1);
      const bool none_high = 2 * q + 1 >= P - Last;
      const BFloat* second = in[2 * q + 1 < P ? 2 * q + 1 : 2 * q];
      const __m512i x = two_lines(in[2 * q] + offset, second + offset, none_low ? 0 : mask, none_high ? 0 : mask);
      __m512i with = dy[q];
      if (none_low) with = _mm512_maskz_mov_epi64(0xf0, with);
      if (none_high) with = _mm512_maskz_mov_epi64(0x0f, with);
      acc = _mm512_dpbf16_ps(acc, (__m512bh)with, (__m512bh)x);
    }
    leave<float>(pending, (Vector<float>)acc, dots.sums);
  }
}

template <int P>
SPARSE_OPS_PAIRS static void dot_run_pairs(const ConvDots& dots, const ConvRun& run, uint32_t lanes, int64_t begin,
                                           int64_t end, const char* fetch, int64_t ahead) {
  constexpr int Q = (P + 1) / 2;
  const __mmask16 mask = static_cast<__mmask16>(lanes);
  const BFloat *in[P], *from[P];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    in[p] = static_cast<const BFloat*>(dots.x) + (run.in + p * dots.in_step) * dots.x_pixel;
    from[p] = static_cast<const BFloat*>(dots.dy) + (run.out + p * dots.out_step) * dots.dy_pixel;
  }
  Pending<float> pending;
  std::memset(pending.vectors, 0, sizeof(pending.vectors));
  pending.count = 0;
  pending.next = 0;
  for (int64_t row = begin; row < end; ++row) {
    for (const char* until = fetch + ahead; fetch < until; fetch += 64) __builtin_prefetch(fetch, 0, 2);
    const int32_t* starts = dots.starts + row * dots.taps;
    if (starts[0] == starts[dots.taps]) continue;
    __m512i dy[Q];
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q)
      dy[q] = two_lines(from[2 * q] + row * dots.pitch, from[2 * q + 1 < P ? 2 * q + 1 : 2 * q] + row * dots.pitch,
                        mask, 2 * q + 1 < P ? mask : __mmask16(0));
    for (const ConvSegment* s = dots.segments + run.first; s < dots.segments + run.last; ++s) {
      const int64_t e = starts[s->begin], last = starts[s->end];
      if (e == last || (P == 1 && (s->without_first || s->without_last))) continue;
      if (e != pending.next) {
        if (pending.count > 0) flush(pending, dots.sums);
        pending.next = e;
      }
      if (s->without_first)
        dot_pairs<P, (P > 1), 0>(in, dy, dots, e, last, mask, pending);
      else if (s->without_last)
        dot_pairs<P, 0, (P > 1)>(in, dy, dots, e, last, mask, pending);
      else
        dot_pairs<P, 0, 0>(in, dy, dots, e, last, mask, pending);
    }
  }
  if (pending.count > 0) flush(pending, dots.sums);
}
#endif

template <typename T, int P>
static inline void dot_whole(const ConvDots& dots, const ConvRun& run, uint32_t mask, int64_t begin, int64_t end,
                             const char* fetch, int64_t ahead) {
#if SPARSE_OPS_AVX512
  if constexpr (sizeof(T) == 2 && !std::is_same_v<T, Half>)
    if (dots.pairs) return dot_run_pairs<P>(dots, run, mask, begin, end, fetch, ahead);
#endif
  if constexpr (P <= kPixels<T>) dot_run<T, P, false>(dots, run, 0, mask, begin, end, fetch, ahead);
}

// Adds to the sums of target channels begin .. end what the runs first .. last give.
template <typename M>
static void dot_runs(const ConvDots& dots, const ConvRun* first, const ConvRun* last, uint32_t mask, int64_t begin,
                     int64_t end) {
  using T = typename InBody<M>::type;
  using A = typename Compute<T>::type;
  constexpr uint32_t kAll = (1u << (64 / sizeof(A))) - 1;
  for (const ConvRun* run = first; run < last; ++run) {
    // What the next run reads first, its last row of lines, is fetched into the L2 cache.
    const char* fetch = nullptr;
    int64_t ahead = 0;
    if (run + 1 < last) {
      const int64_t bytes = dots.x_pixel * static_cast<int64_t>(sizeof(T));
      fetch = static_cast<const char*>(dots.x) + (run[1].in + dots.below) * bytes;
      ahead = (run[1].pixels * bytes / (end - begin) + 63) / 64 * 64;
    }
    if constexpr (!kMasks)
      if (mask != kAll) {
        for (int p = 0; p < run->pixels; ++p) dot_run<T, 1, true>(dots, *run, p, mask, begin, end, nullptr, 0);
        continue;
      }
    switch (run->pixels) {
      case 1: dot_whole<T, 1>(dots, *run, mask, begin, end, fetch, ahead); break;
      case 2: dot_whole<T, 2>(dots, *run, mask, begin, end, fetch, ahead); break;
      case 3: dot_whole<T, 3>(dots, *run, mask, begin, end, fetch, ahead); break;
      case 4: dot_whole<T, 4>(dots, *run, mask, begin, end, fetch, ahead); break;
      case 5: dot_whole<T, 5>(dots, *run, mask, begin, end, fetch, ahead); break;
      case 6: dot_whole<T, 6>(dots, *run, mask, begin, end, fetch, ahead); break;
      case 7: dot_whole<T, 7>(dots, *run, mask, begin, end, fetch, ahead); break;
      case 8: dot_whole<T, 8>(dots, *run, mask, begin, end, fetch, ahead); break;
    }
  }
}

template <typename M>
static int most_dot_pixels() {
  return kPixels<typename InBody<M>::type>;
}
