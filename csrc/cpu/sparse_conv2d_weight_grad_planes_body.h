// Dot products of planes of x with runs of dy: a few lines of dy of one target channel stay in registers while the
// values of that channel pass; each has a vector of sums in L1, and these are added in float64 after a few hundred
// products.
#include "lanes_body.h"
#include "some_lanes_body.h"
#include "sums_body.h"

// How many lines of dy are held in registers at once.
constexpr int kDotLines = SPARSE_OPS_AVX512 ? 8 : SPARSE_OPS_AVX2 ? 6 : 2;

// The pixels of a line, each in its lane; 0 in the others.
template <typename A>
static inline void spread(const A* run, const ConvLine& line, Vector<A>* lanes) {
  constexpr int L = 64 / sizeof(A), W = Lanes<A>::count;
  if (line.count == L) {
    for (int v = 0; v < L / W; ++v) lanes[v] = load(run + line.at + v * W);
    return;
  }
#if SPARSE_OPS_AVX512
  const uint32_t n = (1u << line.count) - 1;
  if constexpr (sizeof(A) == 4)
    lanes[0] = (Vector<A>)_mm512_maskz_expand_ps(static_cast<__mmask16>(line.mask),
                                                 _mm512_maskz_loadu_ps(static_cast<__mmask16>(n), run + line.at));
  else
    lanes[0] = (Vector<A>)_mm512_maskz_expand_pd(static_cast<__mmask8>(line.mask),
                                                 _mm512_maskz_loadu_pd(static_cast<__mmask8>(n), run + line.at));
#else
#if SPARSE_OPS_AVX2
  if constexpr (sizeof(A) == 4) {
    const A* at = run + line.at;
#pragma GCC unroll 2
    for (int v = 0; v < L / W; ++v) {
      const unsigned mask = line.mask >> 8 * v & 0xff;
      const int n = __builtin_popcount(mask);
      lanes[v] = (Vector<A>)expanded(_mm256_maskload_ps(at, first_lanes(n)), mask);
      at += n;
    }
    return;
  }
#endif
  A some[L] = {};
  const A* next = run + line.at;
  for (int l = 0; l < L; ++l)
    if (line.mask >> l & 1) some[l] = *next++;
  for (int v = 0; v < L / W; ++v) lanes[v] = load(some + v * W);
#endif
}

// What lies at p, 0 in lanes that are no pixels: an infinity times zero would not be zero.
template <typename A>
static inline void load_pixels(const A* p, const ConvLine& line, Vector<A>* lanes) {
  constexpr int L = 64 / sizeof(A), W = Lanes<A>::count;
  A some[L];
  for (int l = 0; l < L; ++l) some[l] = line.mask >> l & 1 ? p[l] : A(0);
  for (int v = 0; v < L / W; ++v) lanes[v] = load(some + v * W);
}

// Values from `begin` on, n of them, whose vectors of sums lie at `vectors`; `more`: added to what stands there.
template <typename A, int P, bool Careful>
static inline void dot_lines(const PlaneDots<A>& dots, int64_t first, int64_t begin, int64_t n, bool more, A* vectors) {
  constexpr int L = 64 / sizeof(A), W = Lanes<A>::count, N = L / W, K = P > 3 && N == 1 ? 2 : 1;
  const ConvLine* lines = dots.lines + first;
  const A* x = dots.x + first * L;
  Vector<A> dy[P][N];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) spread<A>(dots.dy, lines[p], dy[p]);
  for (int64_t e = 0; e < n; ++e) {
    const A* from = x + dots.offsets[begin + e];
    Vector<A> acc[K][N] = {};
    if (more) acc[0][0] = load(vectors + e * W);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      Vector<A> careful[N];
      if (Careful) load_pixels<A>(from + p * L, lines[p], careful);
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) acc[p % K][v] += dy[p][v] * (Careful ? careful[v] : load(from + p * L + v * W));
    }
#pragma GCC unroll 4
    for (int v = 1; v < N; ++v) acc[0][0] += acc[0][v];
    if constexpr (K == 2) acc[0][0] += acc[1][0];
    store(vectors + e * W, acc[0][0]);
  }
}

template <typename A, bool Careful>
static void dot_run_as(const PlaneDots<A>& dots) {
  constexpr int W = Lanes<A>::count;
  constexpr int64_t kValues = 128, kTogether = 8;  // blocks of lines whose products one vector of sums takes
  alignas(64) A vectors[kValues * W] = {};
  const int64_t blocks = (dots.count + kDotLines - 1) / kDotLines;
  for (int64_t begin = 0; begin < dots.n; begin += kValues) {
    const int64_t n = dots.n - begin < kValues ? dots.n - begin : kValues;
    for (int64_t b = 0, first = 0; b < blocks; ++b) {
      const int64_t last = (b + 1) * dots.count / blocks;
      const bool more = b % kTogether != 0;
      switch (last - first) {
        case 1: dot_lines<A, 1, Careful>(dots, first, begin, n, more, vectors); break;
        case 2: dot_lines<A, 2, Careful>(dots, first, begin, n, more, vectors); break;
#if SPARSE_OPS_AVX2 || SPARSE_OPS_AVX512
        case 3: dot_lines<A, 3, Careful>(dots, first, begin, n, more, vectors); break;
        case 4: dot_lines<A, 4, Careful>(dots, first, begin, n, more, vectors); break;
        case 5: dot_lines<A, 5, Careful>(dots, first, begin, n, more, vectors); break;
        case 6: dot_lines<A, 6, Careful>(dots, first, begin, n, more, vectors); break;
#endif
#if SPARSE_OPS_AVX512
        case 7: dot_lines<A, 7, Careful>(dots, first, begin, n, more, vectors); break;
        case 8: dot_lines<A, 8, Careful>(dots, first, begin, n, more, vectors); break;
#endif
      }
      first = last;
      if (b + 1 < blocks && (b + 1) % kTogether != 0) continue;
      for (int64_t e = 0; e < n; e += W) {
        alignas(64) A some[W];
        store(some, sums_of<A>(vectors + e * W));
        for (int64_t i = 0; i < W && e + i < n; ++i) dots.sums[begin + e + i] += some[i];
      }
    }
  }
}

// Adds what the run gives to the sums, which hold zeros. Lanes that are no pixels multiply what lies there by 0; where
// a sum is not finite they are left out.
template <typename A>
static void dot_run(const PlaneDots<A>& dots) {
  dot_run_as<A, false>(dots);
  double all = 0;
  for (int64_t e = 0; e < dots.n; ++e) all += dots.sums[e] * 0;
  if (all == 0) return;
  for (int64_t e = 0; e < dots.n; ++e) dots.sums[e] = 0;
  dot_run_as<A, true>(dots);
}
