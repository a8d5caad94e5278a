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

struct AllLanes {
  static constexpr bool value = true;
};
struct SomeLanes {
  static constexpr bool value = false;
};

// Sum over `rows` x `cols` pixels and all lanes; steps are in lines. Four sums run side by side in each lane. From row
// `common` on only the lanes whose bits `kept` (a line) has set are read: an infinity times zero would not be zero.
template <typename A>
static A window_dot(const A* x, int64_t x_row, int64_t x_col, const A* dy, int64_t dy_row, int64_t rows, int64_t cols,
                    int64_t common, const int64_t* kept) {
  typedef int64_t Bits __attribute__((vector_size(kVector), may_alias));
  using V = typename VectorOf<A>::type;
  constexpr int64_t L = 64 / sizeof(A), W = kVector / sizeof(A);
  constexpr int N = 64 / kVector, K = N > 2 ? 1 : 4 / N;
  V acc[K][N];
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) acc[k][v] = V{};
  const auto add = [&](int64_t r, auto lanes) {
    const A *a = x + r * x_row * L, *b = dy + r * dy_row * L;
    const auto product = [&](int64_t c, int v) {
      V from = *reinterpret_cast<const V*>(a + c * x_col * L + v * W);
      if (!decltype(lanes)::value) from = (V)((Bits)from & *reinterpret_cast<const Bits*>(kept + v * (kVector / 8)));
      return from * *reinterpret_cast<const V*>(b + c * L + v * W);
    };
    int64_t c = 0;
    for (; c + K <= cols; c += K)
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k)
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) acc[k][v] += product(c + k, v);
    for (; c < cols; ++c)
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) acc[0][v] += product(c, v);
  };
  int64_t r = 0;
  for (; r < rows && r < common; ++r) add(r, AllLanes{});
  for (; r < rows; ++r) add(r, SomeLanes{});
  V sum = V{};
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) sum += acc[k][v];
  A total = 0;
  for (int i = 0; i < W; ++i) total += sum[i];
  return total;
}
