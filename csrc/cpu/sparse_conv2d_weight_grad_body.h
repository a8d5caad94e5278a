// Dot products of a window of x with a tile of dy, both slabs of lanes (a line is 64 bytes).

#if SPARSE_OPS_AVX512
constexpr int kVector = 64;
#elif SPARSE_OPS_AVX2
constexpr int kVector = 32;
#else
constexpr int kVector = 16;
#endif

template <typename A>
struct VectorOf {
  typedef A type __attribute__((vector_size(kVector), may_alias));
};

// Sum over `rows` x `cols` pixels and all lanes; steps are in lines. Four sums run side by side in each lane.
template <typename A>
static A window_dot(const A* x, int64_t x_row, int64_t x_col, const A* dy, int64_t dy_row, int64_t rows, int64_t cols) {
  using V = typename VectorOf<A>::type;
  constexpr int64_t L = 64 / sizeof(A), W = kVector / sizeof(A);
  constexpr int N = 64 / kVector, K = N > 2 ? 1 : 4 / N;
  V acc[K][N];
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) acc[k][v] = V{};
  for (int64_t r = 0; r < rows; ++r) {
    const A *a = x + r * x_row * L, *b = dy + r * dy_row * L;
    int64_t c = 0;
    for (; c + K <= cols; c += K)
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k)
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v)
          acc[k][v] += *reinterpret_cast<const V*>(a + (c + k) * x_col * L + v * W) *
                       *reinterpret_cast<const V*>(b + (c + k) * L + v * W);
    for (; c < cols; ++c)
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v)
        acc[0][v] += *reinterpret_cast<const V*>(a + c * x_col * L + v * W) *
                     *reinterpret_cast<const V*>(b + c * L + v * W);
  }
  V sum = V{};
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) sum += acc[k][v];
  A total = 0;
  for (int i = 0; i < W; ++i) total += sum[i];
  return total;
}
