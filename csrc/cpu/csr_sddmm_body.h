// dY B^T at the positions of a pattern: both operands in tiles with N innermost; a row of dY stays in registers while
// its nonzeros pass, each of which leaves one vector of partial sums. A square of such vectors is summed at once; with
// AVX2 floats are taken by fours (dot_fours_body.h), whose vectors stay in registers.
#include "lanes_body.h"
#include "activation_body.h"
#include "tiles_body.h"
#include "half_tiles_body.h"
#include "csr_cuts_body.h"
#include "sums_body.h"
#include "dot_rows_body.h"
#include "dot_fours_body.h"

// Partial sums of up to W nonzeros that follow each other. end: where the nonzeros of this thread end, beyond which the
// loop by fours may not write.
template <typename A>
struct Pending {
  explicit Pending(int32_t end) : end(end) {}
  A vectors[Lanes<A>::count * Lanes<A>::count] = {};
  int count = 0;
  const int32_t end;
};

// Ends `count` pending nonzeros, the last of which is `last` - 1; `add` says whether `to` holds a sum already.
template <typename A>
static inline void flush(const A* vectors, int count, int64_t last, bool add, A* to) {
  constexpr int W = Lanes<A>::count;
  const Vector<A> sum = sums_of<A>(vectors);
  A* at = to + last - count;
  if (count == W) {
    store(at, add ? load(at) + sum : sum);
  } else {
    A sums[W];
    store(sums, sum);
    for (int i = 0; i < count; ++i) at[i] = add ? at[i] + sums[i] : sums[i];
  }
}

template <typename R, typename T, typename A>
static void sample_rows(const CsrProblem& p, const T* panel, const T* dy, int64_t begin, int64_t rows, bool add,
                        Pending<A>& pending, A* to) {
#if SPARSE_OPS_AVX2
  if constexpr (sizeof(A) == 4) return sample_fours<R>(p, panel, dy, begin, rows, add, pending.end, to);
#endif
  constexpr int W = Lanes<A>::count;
  int count = pending.count;  // in a register: in memory it would be a chain from nonzero to nonzero
  for (int64_t r = begin; r < begin + rows; ++r, dy += R::width) {
    R row;
    take(dy, &row);
    const int32_t last = p.offsets[r + 1];
    for (int32_t i = p.offsets[r]; i < last; ++i) {
      store(pending.vectors + count * W, product(row, panel + static_cast<int64_t>(p.columns[i]) * R::width));
      if (++count == W) {
        flush(pending.vectors, W, i + int64_t(1), add, to);
        count = 0;
      }
    }
  }
  pending.count = count;
}

#if SPARSE_OPS_AVX512
// Pairs of bfloat16 along N, which follow each other in either row.
template <int NV>
SPARSE_OPS_PAIRS static void sample_paired(const CsrProblem& p, const BFloat* panel, const BFloat* dy, int64_t begin,
                                           int64_t rows, bool add, Pending<float>& pending, float* to) {
  constexpr int H = HalfLanes::count, W = Lanes<float>::count;
  int count = pending.count;
  for (int64_t r = begin; r < begin + rows; ++r, dy += NV * H) {
    __m512bh row[NV];
#pragma GCC unroll 8
    for (int u = 0; u < NV; ++u) row[u] = (__m512bh)_mm512_loadu_si512(dy + u * H);
    const int32_t last = p.offsets[r + 1];
    for (int32_t i = p.offsets[r]; i < last; ++i) {
      const BFloat* from = panel + static_cast<int64_t>(p.columns[i]) * (NV * H);
      __m512 sum = _mm512_setzero_ps();
#pragma GCC unroll 8
      for (int u = 0; u < NV; ++u) sum = _mm512_dpbf16_ps(sum, row[u], (__m512bh)_mm512_loadu_si512(from + u * H));
      _mm512_storeu_ps(pending.vectors + count * W, sum);
      if (++count == W) {
        flush(pending.vectors, W, i + int64_t(1), add, to);
        count = 0;
      }
    }
  }
  pending.count = count;
}

SPARSE_OPS_PAIRS static void sample_pairs(const CsrProblem& p, int64_t tile, const BFloat* panel, const BFloat* dy,
                                          int64_t begin, int64_t rows, bool add, Pending<float>& pending, float* to) {
  switch (tile / HalfLanes::count) {
    case 1: return sample_paired<1>(p, panel, dy, begin, rows, add, pending, to);
    case 2: return sample_paired<2>(p, panel, dy, begin, rows, add, pending, to);
    case 4: return sample_paired<4>(p, panel, dy, begin, rows, add, pending, to);
    case 8: return sample_paired<8>(p, panel, dy, begin, rows, add, pending, to);
  }
}
#else
static void sample_pairs(const CsrProblem&, int64_t, const BFloat*, const BFloat*, int64_t, int64_t, bool,
                         Pending<float>&, float*) {}  // never chosen
#endif

// The rows [begin, begin + rows) of a tile of the compute type, and of halves.
template <typename A>
static void sample_tile(const CsrProblem& p, int64_t tile, const A* panel, const A* dy, int64_t begin, int64_t rows,
                        bool add, Pending<A>& pending, A* to) {
  switch (tile / Lanes<A>::count) {
    case 1: return sample_rows<Row<A, 1>>(p, panel, dy, begin, rows, add, pending, to);
    case 2: return sample_rows<Row<A, 2>>(p, panel, dy, begin, rows, add, pending, to);
    case 4: return sample_rows<Row<A, 4>>(p, panel, dy, begin, rows, add, pending, to);
    case 8: return sample_rows<Row<A, 8>>(p, panel, dy, begin, rows, add, pending, to);
  }
}

template <typename T>
static void sample_half_tile(const CsrProblem& p, int64_t tile, const T* panel, const T* dy, int64_t begin,
                             int64_t rows, bool add, Pending<float>& pending, float* to) {
  switch (tile / HalfLanes::count) {
    case 1: return sample_rows<HalfRow<T, 1>>(p, panel, dy, begin, rows, add, pending, to);
    case 2: return sample_rows<HalfRow<T, 2>>(p, panel, dy, begin, rows, add, pending, to);
    case 4: return sample_rows<HalfRow<T, 4>>(p, panel, dy, begin, rows, add, pending, to);
  }
}

static inline void sample(const CsrProblem& p, int64_t tile, const float* panel, const float* dy, int64_t begin,
                          int64_t rows, bool add, Pending<float>& pending, float* to) {
  sample_tile(p, tile, panel, dy, begin, rows, add, pending, to);
}
static inline void sample(const CsrProblem& p, int64_t tile, const double* panel, const double* dy, int64_t begin,
                          int64_t rows, bool add, Pending<double>& pending, double* to) {
  sample_tile(p, tile, panel, dy, begin, rows, add, pending, to);
}
static inline void sample(const CsrProblem& p, int64_t tile, const Half* panel, const Half* dy, int64_t begin,
                          int64_t rows, bool add, Pending<float>& pending, float* to) {
  sample_half_tile(p, tile, panel, dy, begin, rows, add, pending, to);
}
static inline void sample(const CsrProblem& p, int64_t tile, const BFloat* panel, const BFloat* dy, int64_t begin,
                          int64_t rows, bool add, Pending<float>& pending, float* to) {
  if (p.panel == Panel::pairs)
    sample_pairs(p, tile, panel, dy, begin, rows, add, pending, to);
  else
    sample_half_tile(p, tile, panel, dy, begin, rows, add, pending, to);
}

static inline void pack(const float* x, int64_t row, int64_t depth, int64_t total, int64_t n, int64_t first,
                        int64_t tile, bool transposed, float* panel) {
  pack_panel(x, row, depth, total, n, first, tile, transposed, panel);
}
static inline void pack(const double* x, int64_t row, int64_t depth, int64_t total, int64_t n, int64_t first,
                        int64_t tile, bool transposed, double* panel) {
  pack_panel(x, row, depth, total, n, first, tile, transposed, panel);
}
template <typename T>
static inline void pack(const T* x, int64_t row, int64_t depth, int64_t total, int64_t n, int64_t first, int64_t tile,
                        bool transposed, T* panel) {
  pack_halves(x, row, depth, total, n, first, tile, transposed, panel);
}

template <typename T>
static void sddmm_rows(const CsrProblem& p, int64_t first, int64_t tile, int64_t begin, int64_t end, void* panel_memory,
                       void* rows_memory, bool fresh, bool add, void* to_memory) {
  using A = typename Compute<T>::type;
  const T* b = static_cast<const T*>(p.b);
  const T* y = static_cast<const T*>(p.y);
  A* to = static_cast<A*>(to_memory);
  const T* panel = p.direct ? b : static_cast<T*>(panel_memory);
  if (fresh && !p.direct) pack(b, 0, p.K, p.K, p.N, first, tile, p.transposed, static_cast<T*>(panel_memory));
  Pending<A> pending(p.offsets[end]);
  for (int64_t r = begin; r < end; r += kPackedRows) {
    const int64_t rows = end - r < kPackedRows ? end - r : kPackedRows;
    const T* dy = y + r * p.N;
    if (p.y_transposed || tile != p.N) {
      T* packed = static_cast<T*>(rows_memory);
      pack(y, r, rows, p.M, p.N, first, tile, p.y_transposed, packed);
      dy = packed;
    }
    sample(p, tile, panel, dy, r, rows, add, pending, to);
  }
  if (pending.count > 0) flush(pending.vectors, pending.count, p.offsets[end], add, to);
}

// The nonzeros of rows [begin, end) over the tile of N that starts at `first`, in the compute type: written to `to`
// (nnz), or added to it. The panel holds K * tile elements and is filled only if `fresh`; rows hold kPackedRows * tile.
static void sddmm(const CsrProblem& p, int64_t first, int64_t tile, int64_t begin, int64_t end, void* panel, void* rows,
                  bool fresh, bool add, void* to) {
  switch (p.dtype) {
    case Dtype::f32: return sddmm_rows<float>(p, first, tile, begin, end, panel, rows, fresh, add, to);
    case Dtype::f64: return sddmm_rows<double>(p, first, tile, begin, end, panel, rows, fresh, add, to);
    case Dtype::f16: return sddmm_rows<Half>(p, first, tile, begin, end, panel, rows, fresh, add, to);
    case Dtype::bf16: return sddmm_rows<BFloat>(p, first, tile, begin, end, panel, rows, fresh, add, to);
  }
}

// The same nonzeros by blocks of columns, whose rows of the panel stay in L1 meanwhile: in the run of rows [begin,
// end), cut before, row begin + r of block b becomes row begin * blocks + b * (end - begin) + r of a matrix with its
// own offsets and columns.
static void group_rows(const CsrProblem& p, int64_t begin, int64_t end, int64_t blocks, const int32_t* cuts,
                       int32_t* offsets, int32_t* columns) {
  const int64_t rows = end - begin;
  int32_t at = p.offsets[begin];
  cuts += begin * (blocks + 1);
  offsets += begin * blocks;
  for (int64_t row = 0; row < blocks * rows; ++row) {
    offsets[row] = at;
    for (int32_t i = cuts[row]; i < cuts[row + rows]; ++i) columns[at++] = p.columns[i];
  }
  offsets[blocks * rows] = at;
}

// As sddmm for such a run of float32, with p of that matrix, whose M stays the number of rows; sums are in its order.
static void sddmm_grouped(const CsrProblem& p, int64_t first, int64_t tile, int64_t blocks, int64_t begin, int64_t end,
                          float* panel, float* rows_memory, bool fresh, bool add, float* to) {
  if (fresh) pack_panel(static_cast<const float*>(p.b), 0, p.K, p.K, p.N, first, tile, p.transposed, panel);
  const int64_t rows = end - begin;
  pack_panel(static_cast<const float*>(p.y), begin, rows, p.M, p.N, first, tile, p.y_transposed, rows_memory);
  Pending<float> pending(p.offsets[end * blocks]);
  for (int64_t b = 0; b < blocks; ++b)
    sample(p, tile, panel, rows_memory, begin * blocks + b * rows, rows, add, pending, to);
  if (pending.count > 0) flush(pending.vectors, pending.count, p.offsets[end * blocks], add, to);
}

// to[i] = the sum of partial[part] over the parts in their order, for the nonzeros of a run, in the order of the
// matrix.
static void reduce_grouped(const float* partial, int64_t parts, int64_t n, const int32_t* offsets, const int32_t* cuts,
                           int64_t blocks, int64_t begin, int64_t end, float* to) {
  const int64_t rows = end - begin;
  cuts += begin * (blocks + 1);
  offsets += begin * blocks;
  for (int64_t row = 0; row < blocks * rows; ++row) {
    const float* from = partial + offsets[row];
    float* at = to + cuts[row];
    const int32_t count = offsets[row + 1] - offsets[row];
    for (int32_t i = 0; i < count; ++i) {
      float sum = from[i];
      for (int64_t part = 1; part < parts; ++part) sum += from[part * n + i];
      at[i] = sum;
    }
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
