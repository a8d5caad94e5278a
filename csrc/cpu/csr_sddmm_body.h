// dY B^T at the positions of a pattern: both operands in tiles with N innermost; a row of dY stays in registers while
// its nonzeros pass, each leaves one vector of partial sums, and a square of such vectors is summed at once.
#include "lanes_body.h"
#include "tiles_body.h"

constexpr int64_t kRowBlock = 16;

// The sums of W vectors in one vector. Every vector is summed in the same order, whatever its place.
template <typename A>
static inline Vector<A> sums_of(const A* vectors) {
  constexpr int W = Lanes<A>::count;
  Vector<A> v[W];
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) v[i] = load(vectors + i * W);
#pragma GCC unroll 4
  for (int half = W / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) {
      Vector<A> low, high;
      interleave(v[i], v[i + half], &low, &high);
      v[i] = low + high;
    }
  return v[0];
}

// Partial sums of up to W nonzeros that follow each other.
template <typename A>
struct Pending {
  A vectors[Lanes<A>::count * Lanes<A>::count];
  int count;
};

// Ends the pending nonzeros, the last of which is `last` - 1; `add` says whether `to` holds a sum already.
template <typename A>
static inline void flush(Pending<A>& pending, int64_t last, bool add, A* to) {
  constexpr int W = Lanes<A>::count;
  const Vector<A> sum = sums_of<A>(pending.vectors);
  A* at = to + last - pending.count;
  if (pending.count == W) {
    store(at, add ? load(at) + sum : sum);
  } else {
    A sums[W];
    store(sums, sum);
    for (int i = 0; i < pending.count; ++i) at[i] = add ? at[i] + sums[i] : sums[i];
  }
  pending.count = 0;
}

template <typename A, int NV>
static void sample_rows(const CsrProblem& p, const A* panel, const A* dy, int64_t begin, int64_t rows, bool add,
                        Pending<A>& pending, A* to) {
  constexpr int W = Lanes<A>::count;
  for (int64_t r = begin; r < begin + rows; ++r, dy += NV * W) {
    Vector<A> row[NV];
#pragma GCC unroll 8
    for (int u = 0; u < NV; ++u) row[u] = load(dy + u * W);
    const int32_t last = p.offsets[r + 1];
    for (int32_t i = p.offsets[r]; i < last; ++i) {
      const A* from = panel + static_cast<int64_t>(p.columns[i]) * (NV * W);
      Vector<A> sum = row[0] * load(from);
#pragma GCC unroll 8
      for (int u = 1; u < NV; ++u) sum += row[u] * load(from + u * W);
      store(pending.vectors + pending.count * W, sum);
      if (++pending.count == W) flush(pending, i + int64_t(1), add, to);
    }
  }
}

template <typename T>
static void sddmm_rows(const CsrProblem& p, int64_t first, int64_t tile, int64_t begin, int64_t end, void* panel_memory,
                       void* rows_memory, bool pack, bool add, void* to_memory) {
  using A = typename Compute<T>::type;
  A* panel = static_cast<A*>(panel_memory);
  A* dy = static_cast<A*>(rows_memory);
  A* to = static_cast<A*>(to_memory);
  if (pack) pack_panel(static_cast<const T*>(p.b), 0, p.K, p.K, p.N, first, tile, p.transposed, panel);
  Pending<A> pending;
  pending.count = 0;
  std::memset(pending.vectors, 0, sizeof(pending.vectors));
  for (int64_t r = begin; r < end; r += kRowBlock) {
    const int64_t rows = end - r < kRowBlock ? end - r : kRowBlock;
    pack_panel(static_cast<const T*>(p.y), r, rows, p.M, p.N, first, tile, p.transposed, dy);
    switch (tile / Lanes<A>::count) {
      case 1: sample_rows<A, 1>(p, panel, dy, r, rows, add, pending, to); break;
      case 2: sample_rows<A, 2>(p, panel, dy, r, rows, add, pending, to); break;
      case 4: sample_rows<A, 4>(p, panel, dy, r, rows, add, pending, to); break;
      case 8: sample_rows<A, 8>(p, panel, dy, r, rows, add, pending, to); break;
    }
  }
  if (pending.count > 0) flush(pending, p.offsets[end], add, to);
}

// The nonzeros of rows [begin, end) over the tile of N that starts at `first`, in the compute type: written to `to`
// (nnz), or added to it. The panel holds K * tile elements and is filled only if `pack`; rows hold kRowBlock * tile.
static void sddmm(const CsrProblem& p, int64_t first, int64_t tile, int64_t begin, int64_t end, void* panel, void* rows,
                  bool pack, bool add, void* to) {
  switch (p.dtype) {
    case Dtype::f32: return sddmm_rows<float>(p, first, tile, begin, end, panel, rows, pack, add, to);
    case Dtype::f64: return sddmm_rows<double>(p, first, tile, begin, end, panel, rows, pack, add, to);
    case Dtype::f16: return sddmm_rows<Half>(p, first, tile, begin, end, panel, rows, pack, add, to);
    case Dtype::bf16: return sddmm_rows<BFloat>(p, first, tile, begin, end, panel, rows, pack, add, to);
  }
}

template <typename T>
static void sample_outer(const CsrProblem& p, int64_t begin, int64_t end, T* to) {
  for (int64_t r = begin; r < end; ++r) {
    const auto dy = widen_one(static_cast<const T*>(p.y)[r]);
    for (int32_t i = p.offsets[r]; i < p.offsets[r + 1]; ++i)
      narrow_one(dy * widen_one(static_cast<const T*>(p.b)[p.columns[i]]), to + i);
  }
}

// N = 1: one product per nonzero of the rows [begin, end).
static void sddmm_vector(const CsrProblem& p, int64_t begin, int64_t end, void* to) {
  switch (p.dtype) {
    case Dtype::f32: return sample_outer(p, begin, end, static_cast<float*>(to));
    case Dtype::f64: return sample_outer(p, begin, end, static_cast<double*>(to));
    case Dtype::f16: return sample_outer(p, begin, end, static_cast<Half*>(to));
    case Dtype::bf16: return sample_outer(p, begin, end, static_cast<BFloat*>(to));
  }
}

template <typename T>
static void add_parts(const typename Compute<T>::type* partial, int64_t parts, int64_t n, int64_t begin, int64_t end,
                      T* to) {
  for (int64_t i = begin; i < end; ++i) {
    auto sum = partial[i];
    for (int64_t part = 1; part < parts; ++part) sum += partial[part * n + i];
    narrow_one(sum, to + i);
  }
}

// to[i] = the sum of partial[part][i] over the parts in their order, for i in [begin, end) of n.
static void reduce(Dtype dtype, const void* partial, int64_t parts, int64_t n, int64_t begin, int64_t end, void* to) {
  const auto* floats = static_cast<const float*>(partial);
  switch (dtype) {
    case Dtype::f32: return add_parts(floats, parts, n, begin, end, static_cast<float*>(to));
    case Dtype::f64:
      return add_parts(static_cast<const double*>(partial), parts, n, begin, end, static_cast<double*>(to));
    case Dtype::f16: return add_parts(floats, parts, n, begin, end, static_cast<Half*>(to));
    case Dtype::bf16: return add_parts(floats, parts, n, begin, end, static_cast<BFloat*>(to));
  }
}

static int64_t vector_bytes() { return kVectorBytes; }
