// Tiles between a strided matrix and packed, cache-resident panels, with a transposition on the way where it is needed.
// Included by bodies after lanes_body.h.

// W columns of a panel from `lines` <= W lines of x (all of them if Full), `total` apart: panel[k][i] = x[i][k].
template <typename T, typename A, bool Full>
static inline void pack_lines(const T* x, int64_t total, int64_t lines, int64_t depth, int64_t tile, A* panel) {
  constexpr int W = Lanes<A>::count;
  int64_t k = 0;
  for (; k + W <= depth; k += W) {
    Vector<A> rows[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) rows[i] = Full || i < lines ? load(x + i * total + k) : Vector<A>{};
    transpose<A>(rows);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) store(panel + (k + i) * tile, rows[i]);
  }
  for (; k < depth; ++k)
    for (int i = 0; i < W; ++i) panel[k * tile + i] = Full || i < lines ? widen_one(x[i * total + k]) : A(0);
}

// panel[k][j] = x(row + k, first + j) for k < depth, j < tile (a multiple of a vector), where x is (n, total rows) in
// memory if `transposed`, else (total rows, n); what is beyond n is 0.
template <typename T, typename A>
static void pack_panel(const T* x, int64_t row, int64_t depth, int64_t total, int64_t n, int64_t first, int64_t tile,
                       bool transposed, A* panel) {
  constexpr int W = Lanes<A>::count;
  const int64_t count = n - first < tile ? n - first : tile;
  if (transposed) {
    x += first * total + row;
    for (int64_t j = 0; j < tile; j += W, x += W * total) {
      if (j + W <= count)
        pack_lines<T, A, true>(x, total, W, depth, tile, panel + j);
      else
        pack_lines<T, A, false>(x, total, count - j, depth, tile, panel + j);
    }
    return;
  }
  x += row * n + first;
  for (int64_t k = 0; k < depth; ++k) {
    const T* from = x + k * n;
    A* to = panel + k * tile;
    int64_t j = 0;
    for (; j + W <= count; j += W) store(to + j, load(from + j));
    for (; j < count; ++j) to[j] = widen_one(from[j]);
    for (; j < tile; ++j) to[j] = 0;
  }
}

// A panel of half a vector a row: all n columns, n at most half a vector, and zeros.
template <typename T, typename A>
static void pack_narrow(const T* x, int64_t depth, int64_t n, bool transposed, A* panel) {
  constexpr int W = Lanes<A>::count, H = W / 2;
  int64_t k = 0;
  if (transposed)
    for (; k + W <= depth; k += W) {
      Vector<A> rows[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) rows[i] = i < n ? load(x + i * depth + k) : Vector<A>{};
      transpose<A>(rows);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) std::memcpy(panel + (k + i) * H, &rows[i], H * sizeof(A));
    }
  for (; k < depth; ++k)
    for (int i = 0; i < H; ++i)
      panel[k * H + i] = i < n ? widen_one(transposed ? x[i * depth + k] : x[k * n + i]) : A(0);
}

// The way back for a block of rows of a result, through the addend and the activation if Finish.
template <typename T, typename A, bool Finish>
static void unpack_rows(const CsrProblem& p, const A* panel, int64_t row, int64_t rows, int64_t first, int64_t tile) {
  constexpr int W = Lanes<A>::count;
  const int64_t count = p.N - first < tile ? p.N - first : tile;
  T* y = static_cast<T*>(p.y);
  const T* addend = static_cast<const T*>(p.addend);
  const auto put = [&](const Vector<A>& v, int64_t at) {
    store(y + at, Finish ? finished(v, addend == nullptr ? nullptr : addend + at, p.activation) : v);
  };
  const auto put_one = [&](A v, int64_t at) {
    narrow_one(Finish ? finished_one(v, addend == nullptr ? nullptr : addend + at, p.activation) : v, y + at);
  };
  if (!p.y_transposed) {
    for (int64_t i = 0; i < rows; ++i) {
      const A* from = panel + i * tile;
      const int64_t at = (row + i) * p.N + first;
      int64_t j = 0;
      for (; j + W <= count; j += W) put(load(from + j), at + j);
      for (; j < count; ++j) put_one(from[j], at + j);
    }
    return;
  }
  for (int64_t j = 0; j < count; j += W) {
    const int64_t lines = count - j < W ? count - j : W, at = (first + j) * p.M + row;
    int64_t i = 0;
    for (; i + W <= rows; i += W) {
      Vector<A> square[W];
#pragma GCC unroll 16
      for (int u = 0; u < W; ++u) square[u] = load(panel + (i + u) * tile + j);
      transpose<A>(square);
      if (lines == W) {
#pragma GCC unroll 16
        for (int u = 0; u < W; ++u) put(square[u], at + u * p.M + i);
      } else {
        for (int64_t u = 0; u < lines; ++u) put(square[u], at + u * p.M + i);
      }
    }
    for (; i < rows; ++i)
      for (int64_t u = 0; u < lines; ++u) put_one(panel[i * tile + j + u], at + u * p.M + i);
  }
}

// panel[i][j] += addend(row + i, first + j), where that lies with N innermost.
template <typename T, typename A>
static void add_rows(const CsrProblem& p, A* panel, int64_t row, int64_t rows, int64_t first, int64_t tile) {
  constexpr int W = Lanes<A>::count;
  const int64_t count = p.N - first < tile ? p.N - first : tile;
  for (int64_t i = 0; i < rows; ++i, panel += tile) {
    const T* from = static_cast<const T*>(p.addend) + (row + i) * p.N + first;
    int64_t j = 0;
    for (; j + W <= count; j += W) store(panel + j, load(panel + j) + load(from + j));
    for (; j < count; ++j) panel[j] += widen_one(from[j]);
  }
}

// y(row + i, first + j) = activation(panel[i][j] + addend(...)); the panel, which has room for kSumRows rows, is of no
// use any more.
template <typename T, typename A>
static void unpack_panel(const CsrProblem& p, A* panel, int64_t row, int64_t rows, int64_t first, int64_t tile) {
  const bool own_pass = p.activation == Activation::gelu && (p.addend == nullptr || !p.y_transposed);
  if (own_pass && p.addend != nullptr) add_rows<T>(p, panel, row, rows, first, tile);
  if (own_pass) gelu_all(panel, rows * tile);
  if (!own_pass && (p.addend != nullptr || p.activation != Activation::none))
    unpack_rows<T, A, true>(p, panel, row, rows, first, tile);
  else
    unpack_rows<T, A, false>(p, panel, row, rows, first, tile);
}
