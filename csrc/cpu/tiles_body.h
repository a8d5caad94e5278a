// Tiles between a strided matrix and packed, cache-resident panels, with a transposition on the way where it is needed.
// Included by bodies after lanes_body.h.

// panel[k][j] = x(row + k, first + j) for k < depth, j < tile, where x is (n, total rows) in memory if `transposed`, else
// (total rows, n); what is beyond n is 0.
template <typename T, typename A>
static void pack_panel(const T* x, int64_t row, int64_t depth, int64_t total, int64_t n, int64_t first, int64_t tile,
                       bool transposed, A* panel) {
  constexpr int W = Lanes<A>::count;
  x += transposed ? row : row * n;
  const int64_t count = n - first < tile ? n - first : tile;
  if (!transposed) {
    for (int64_t k = 0; k < depth; ++k) {
      const T* from = x + k * n + first;
      A* to = panel + k * tile;
      int64_t j = 0;
      for (; j + W <= count; j += W) store(to + j, load(from + j));
      for (; j < count; ++j) to[j] = widen_one(from[j]);
      for (; j < tile; ++j) to[j] = 0;
    }
    return;
  }
  int64_t j = 0;
  for (; j + W <= count; j += W) {
    const T* from = x + (first + j) * total;
    int64_t k = 0;
    for (; k + W <= depth; k += W) {
      Vector<A> rows[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) rows[i] = load(from + i * total + k);
      transpose<A>(rows);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) store(panel + (k + i) * tile + j, rows[i]);
    }
    for (; k < depth; ++k)
      for (int i = 0; i < W; ++i) panel[k * tile + j + i] = widen_one(from[i * total + k]);
  }
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t i = j; i < count; ++i) panel[k * tile + i] = widen_one(x[(first + i) * total + k]);
    for (int64_t i = count; i < tile; ++i) panel[k * tile + i] = 0;
  }
}

// The way back for a block of rows of a result: y(row + i, first + j) = panel[i][j].
template <typename T, typename A>
static void unpack_panel(const A* panel, int64_t row, int64_t rows, int64_t total, int64_t n, int64_t first, int64_t tile,
                         bool transposed, T* y) {
  constexpr int W = Lanes<A>::count;
  const int64_t count = n - first < tile ? n - first : tile;
  if (!transposed) {
    for (int64_t i = 0; i < rows; ++i) {
      const A* from = panel + i * tile;
      T* to = y + (row + i) * n + first;
      int64_t j = 0;
      for (; j + W <= count; j += W) store(to + j, load(from + j));
      for (; j < count; ++j) narrow_one(from[j], to + j);
    }
    return;
  }
  int64_t j = 0;
  for (; j + W <= count; j += W) {
    T* to = y + (first + j) * total + row;
    int64_t i = 0;
    for (; i + W <= rows; i += W) {
      Vector<A> square[W];
#pragma GCC unroll 16
      for (int u = 0; u < W; ++u) square[u] = load(panel + (i + u) * tile + j);
      transpose<A>(square);
#pragma GCC unroll 16
      for (int u = 0; u < W; ++u) store(to + u * total + i, square[u]);
    }
    for (; i < rows; ++i)
      for (int u = 0; u < W; ++u) narrow_one(panel[i * tile + j + u], to + u * total + i);
  }
  for (; j < count; ++j)
    for (int64_t i = 0; i < rows; ++i) narrow_one(panel[i * tile + j], y + (first + j) * total + row + i);
}
