// Sums of a sparse convolution over a slab of lanes: line i of the slab is slab[i * L], L = 64 bytes of accumulators.

#if SPARSE_OPS_AVX512
constexpr int kVector = 64, kPixels = 8;
#elif SPARSE_OPS_AVX2
constexpr int kVector = 32, kPixels = 6;
#else
constexpr int kVector = 16, kPixels = 3;
#endif

#include "sparse_conv2d_activation_body.h"

template <typename A>
struct VectorOf {
  typedef A type __attribute__((vector_size(kVector), may_alias));
};

// P output pixels of one row at once, in registers; K separate sums each where P alone would wait for the adder. What
// stands in `out` is added where `add`.
template <typename A, int P, int K>
static inline void sum_block(const A* slab, const ConvBlock& block, const ConvEntry<A>* e, int64_t n, A bias, bool add,
                             ConvActivation activation, A* out) {
  using V = typename VectorOf<A>::type;
  constexpr int64_t L = 64 / sizeof(A), W = kVector / sizeof(A);
  constexpr int N = 64 / kVector;
  V acc[K][P][N];
  const A* in[P];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    in[p] = slab + block.in[p] * L;
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      acc[0][p][v] = V{} + bias;
#pragma GCC unroll 4
      for (int k = 1; k < K; ++k) acc[k][p][v] = V{};
    }
  }
  int64_t i = 0;
  for (; i + K <= n; i += K) {
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      const int64_t offset = e[i + k].offset * L;
      const V value = V{} + e[i + k].value;
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) acc[k][p][v] += value * *reinterpret_cast<const V*>(in[p] + offset + v * W);
    }
  }
  for (; i < n; ++i) {
    const int64_t offset = e[i].offset * L;
    const V value = V{} + e[i].value;
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) acc[0][p][v] += value * *reinterpret_cast<const V*>(in[p] + offset + v * W);
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
#pragma GCC unroll 4
      for (int k = 1; k < K; ++k) acc[0][p][v] += acc[k][p][v];
      V* to = reinterpret_cast<V*>(out + block.out[p] * L + v * W);
      if (add) acc[0][p][v] += *to;
      *to = activated<A>(acc[0][p][v], activation);
    }
}

// One row (output channel) of a tile: block b sums the entries starts[class] .. starts[class + 1] of its class.
template <typename A>
static void sum_row(const A* slab, const ConvBlock* blocks, int64_t n, const ConvEntry<A>* entries,
                    const int64_t* starts, A bias, bool add, ConvActivation activation, A* out) {
  for (int64_t b = 0; b < n; ++b) {
    const ConvBlock& block = blocks[b];
    const ConvEntry<A>* e = entries + starts[block.cls];
    const int64_t count = starts[block.cls + 1] - starts[block.cls];
    switch (block.pixels) {
      case 1: sum_block<A, 1, 4>(slab, block, e, count, bias, add, activation, out); break;
      case 2: sum_block<A, 2, kVector == 64 ? 4 : 2>(slab, block, e, count, bias, add, activation, out); break;
      case 3: sum_block<A, 3, kVector == 64 ? 2 : 1>(slab, block, e, count, bias, add, activation, out); break;
#if !SPARSE_OPS_SCALAR
      case 4: sum_block<A, 4, 1>(slab, block, e, count, bias, add, activation, out); break;
      case 5: sum_block<A, 5, 1>(slab, block, e, count, bias, add, activation, out); break;
      case 6: sum_block<A, 6, 1>(slab, block, e, count, bias, add, activation, out); break;
#endif
#if SPARSE_OPS_AVX512
      case 7: sum_block<A, 7, 1>(slab, block, e, count, bias, add, activation, out); break;
      case 8: sum_block<A, 8, 1>(slab, block, e, count, bias, add, activation, out); break;
#endif
    }
  }
}

static int most_pixels() { return kPixels; }
