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

// The first n of a vector's elements; the others are 0. n may be less than 0, or more than there are.
template <typename T>
static inline auto load_some(const T* p, int n) {
  T some[kVectorBytes / sizeof(typename Compute<T>::type)] = {};
  const int most = static_cast<int>(sizeof(some) / sizeof(T));
  if (n > 0) std::memcpy(some, p, (n < most ? n : most) * sizeof(T));
  return load(some);
}

template <typename T, typename V>
static inline void store_some(T* p, const V& v, int n) {
  T some[kVectorBytes / sizeof(typename Compute<T>::type)];
  const int most = static_cast<int>(sizeof(some) / sizeof(T));
  store(some, v);
  if (n > 0) std::memcpy(p, some, (n < most ? n : most) * sizeof(T));
}

#if SPARSE_OPS_AVX512
static inline uint32_t first_bits(int n) { return n <= 0 ? 0 : (1u << (n < 16 ? n : 16)) - 1; }
static inline Vector<float> load_some(const float* p, int n) {
  return (Vector<float>)_mm512_maskz_loadu_ps(static_cast<__mmask16>(first_bits(n)), p);
}
static inline void store_some(float* p, const Vector<float>& v, int n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(first_bits(n)), (__m512)v);
}
static inline Vector<float> load_some(const BFloat* p, int n) {
  const __m256i halves = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(first_bits(n)), p);
  return (Vector<float>)_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
static inline Vector<float> load_some(const Half* p, int n) {
  return (Vector<float>)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(first_bits(n)), p));
}
#endif

// P pixels of one class, target channels begin .. end; K separate sums each where P alone would wait for the adder.
template <typename T, int P, int K, bool Full>
static void block_rows(const ConvLines& lines, const ConvBlock& block, const ConvSegment* segments, int n_segments,
                       const ConvEntry<typename Compute<T>::type>* entries, const int32_t* starts, int64_t taps,
                       int64_t begin, int64_t end) {
  using A = typename Compute<T>::type;
  constexpr int W = Lanes<A>::count, N = 64 / kVectorBytes;
  const int64_t pitch = lines.pitch;
  const T* in[P];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) in[p] = static_cast<const T*>(lines.x) + block.in[p] * pitch;
  const auto line = [&](const T* from, int v) {
    if constexpr (Full) return load(from + v * W);
    else return load_some(from + v * W, lines.lanes - v * W);
  };
  for (int64_t row = begin; row < end; ++row) {
    Vector<A> acc[K][P][N];
    const A bias = lines.bias == nullptr ? A{} : static_cast<const A*>(lines.bias)[row];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) {
        acc[0][p][v] = Vector<A>{} + bias;
#pragma GCC unroll 4
        for (int k = 1; k < K; ++k) acc[k][p][v] = Vector<A>{};
      }
    for (int s = 0; s < n_segments; ++s) {
      const auto* e = entries + starts[row * taps + segments[s].begin];
      const auto* last = entries + starts[row * taps + segments[s].end];
      for (; e + K <= last; e += K)
#pragma GCC unroll 4
        for (int k = 0; k < K; ++k) {
          const int64_t offset = e[k].offset * pitch;
#pragma GCC unroll 8
          for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
            for (int v = 0; v < N; ++v) acc[k][p][v] += e[k].value * line(in[p] + offset, v);
        }
      for (; e < last; ++e) {
        const int64_t offset = e->offset * pitch;
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
          for (int v = 0; v < N; ++v) acc[0][p][v] += e->value * line(in[p] + offset, v);
      }
    }
    const int64_t channel = row * lines.plane;
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      const int64_t at = (channel + block.out[p]) * pitch;
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) {
#pragma GCC unroll 4
        for (int k = 1; k < K; ++k) acc[0][p][v] += acc[k][p][v];
        if (lines.addend != nullptr) acc[0][p][v] += line(static_cast<const T*>(lines.addend) + at, v);
        const Vector<A> y = activated<A>(acc[0][p][v], lines.activation);
        T* to = static_cast<T*>(lines.y) + at + v * W;
        if constexpr (Full) store(to, y);
        else store_some(to, y, lines.lanes - v * W);
      }
    }
  }
}

template <typename T, bool Full, typename... Rest>
static void block_of(const ConvLines& lines, const ConvBlock& block, const Rest&... rest) {
  switch (block.pixels) {
    case 1: return block_rows<T, 1, 4, Full>(lines, block, rest...);
    case 2: return block_rows<T, 2, kVectorBytes == 64 ? 4 : 2, Full>(lines, block, rest...);
    case 3: return block_rows<T, 3, kVectorBytes == 64 ? 2 : 1, Full>(lines, block, rest...);
#if !SPARSE_OPS_SCALAR
    case 4: return block_rows<T, 4, 1, Full>(lines, block, rest...);
    case 5: return block_rows<T, 5, 1, Full>(lines, block, rest...);
    case 6: return block_rows<T, 6, 1, Full>(lines, block, rest...);
#endif
#if SPARSE_OPS_AVX512
    case 7: return block_rows<T, 7, 1, Full>(lines, block, rest...);
    case 8: return block_rows<T, 8, 1, Full>(lines, block, rest...);
#endif
  }
}

template <typename M>
static void line_sums(const ConvLines& lines, const ConvBlock& block, const ConvSegment* segments, int n_segments,
                      const ConvEntry<Accumulator<M>>* entries, const int32_t* starts, int64_t taps, int64_t begin,
                      int64_t end) {
  using T = typename InBody<M>::type;
  using A = Accumulator<M>;
  if (lines.lanes == 64 / static_cast<int>(sizeof(A)))
    return block_of<T, true>(lines, block, segments, n_segments, entries, starts, taps, begin, end);
  return block_of<T, false>(lines, block, segments, n_segments, entries, starts, taps, begin, end);
}

static int most_line_pixels() { return SPARSE_OPS_AVX512 ? 8 : SPARSE_OPS_AVX2 ? 6 : 3; }
