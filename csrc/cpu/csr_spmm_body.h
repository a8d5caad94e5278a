// Y = A B: a tile of B, packed with N innermost, stays in the L2 cache while each row of A runs over it once, with the
// sums of the row's tile in registers: per nonzero one broadcast and one FMA per vector, no store.
#include "lanes_body.h"
#include "activation_body.h"
#include "tiles_body.h"
#include "half_tiles_body.h"
#include "half_products_body.h"
#include "csr_cuts_body.h"
#include "csr_grouped_body.h"
#include "csr_narrow_body.h"
#include "csr_vector_body.h"

// sums[i][...] for the rows [begin, begin + rows): NV vectors a row.
template <typename A, int NV>
static void rows_times_panel(const CsrProblem& p, const A* panel, int64_t begin, int64_t rows, A* sums) {
  constexpr int W = Lanes<A>::count;
  const A* values = static_cast<const A*>(p.values);
  const A* bias = static_cast<const A*>(p.bias);
  for (int64_t r = begin; r < begin + rows; ++r, sums += NV * W) {
    Vector<A> sum[NV];
#pragma GCC unroll 8
    for (int u = 0; u < NV; ++u) sum[u] = Vector<A>{} + (bias ? bias[r] : A(0));
    for (int32_t i = p.offsets[r]; i < p.offsets[r + 1]; ++i) {
      const A* from = panel + static_cast<int64_t>(p.columns[i]) * (NV * W);
      const A value = values[i];
#pragma GCC unroll 8
      for (int u = 0; u < NV; ++u) sum[u] += value * load(from + u * W);
    }
#pragma GCC unroll 8
    for (int u = 0; u < NV; ++u) store(sums + u * W, sum[u]);
  }
}

// A tile of halves: the same with NV vectors of halves a row of the panel, two vectors of sums for each.
template <typename T>
static void rows_times_half_tile(const CsrProblem& p, const T* panel, int64_t tile, int64_t begin, int64_t rows,
                                 float* sums) {
  switch (tile / HalfLanes::count) {
    case 1: return rows_times_halves<T, 1>(p, panel, begin, rows, sums);
    case 2: return rows_times_halves<T, 2>(p, panel, begin, rows, sums);
    case 4: return rows_times_halves<T, 4>(p, panel, begin, rows, sums);
  }
}

template <typename T>
static void spmm_half_rows(const CsrProblem& p, int64_t first, int64_t tile, int64_t begin, int64_t end, T* panel,
                           bool pack, float* sums) {
  if (p.direct)
    panel = const_cast<T*>(static_cast<const T*>(p.b));  // it is only read
  else if (pack)
    pack_halves(static_cast<const T*>(p.b), 0, p.K, p.K, p.N, first, tile, p.transposed, panel);
  for (int64_t r = begin; r < end; r += kSumRows) {
    const int64_t rows = end - r < kSumRows ? end - r : kSumRows;
    if (p.panel == Panel::pairs)
      rows_times_pairs(p, reinterpret_cast<const uint16_t*>(panel), tile, r, rows, sums);
    else
      rows_times_half_tile(p, panel, tile, r, rows, sums);
    unpack_panel<T>(p, sums, r, rows, first, tile);
  }
}

template <typename T>
static void spmm_rows(const CsrProblem& p, int64_t first, int64_t tile, int64_t begin, int64_t end, void* panel_memory,
                      bool pack, void* sums_memory) {
  using A = typename Compute<T>::type;
  A* panel = static_cast<A*>(panel_memory);
  A* sums = static_cast<A*>(sums_memory);
  if (p.N == 1)
    return rows_times_vector<T, A>(p, widened_vector(static_cast<const T*>(p.b), p.K, panel), begin, end);
  constexpr int64_t W = Lanes<A>::count;
  const int64_t between = tile < W ? W : tile;
  if (p.direct)
    panel = static_cast<A*>(const_cast<void*>(p.b));  // it is only read
  else if (pack && tile < W)
    pack_narrow(static_cast<const T*>(p.b), p.K, p.N, p.transposed, panel);
  else if (pack)
    pack_panel(static_cast<const T*>(p.b), 0, p.K, p.K, p.N, first, tile, p.transposed, panel);
  for (int64_t r = begin; r < end; r += kSumRows) {
    const int64_t rows = end - r < kSumRows ? end - r : kSumRows;
    if (times_eight(p, panel, tile, r, rows, sums)) {
      unpack_panel<T>(p, sums, r, rows, first, between);
      continue;
    }
    switch (tile / W) {
      case 0: rows_times_narrow<A, typename HalfVector<A>::type>(p, panel, r, rows, sums); break;
      case 1: rows_times_narrow<A, Vector<A>>(p, panel, r, rows, sums); break;
      case 2: rows_times_panel<A, 2>(p, panel, r, rows, sums); break;
      case 4: rows_times_panel<A, 4>(p, panel, r, rows, sums); break;
      case 8: rows_times_panel<A, 8>(p, panel, r, rows, sums); break;
    }
    unpack_panel<T>(p, sums, r, rows, first, between);
  }
}

// Rows [begin, end) of the tile of N that starts at `first`. The panel holds K * tile of its elements and is filled
// only if `pack`; sums hold kSumRows * tile.
static void spmm(const CsrProblem& p, int64_t first, int64_t tile, int64_t begin, int64_t end, void* panel, bool pack,
                 void* sums) {
  if (p.panel != Panel::computed) {
    auto* floats = static_cast<float*>(sums);
    return p.dtype == Dtype::f16
               ? spmm_half_rows(p, first, tile, begin, end, static_cast<Half*>(panel), pack, floats)
               : spmm_half_rows(p, first, tile, begin, end, static_cast<BFloat*>(panel), pack, floats);
  }
  switch (p.dtype) {
    case Dtype::f32: return spmm_rows<float>(p, first, tile, begin, end, panel, pack, sums);
    case Dtype::f64: return spmm_rows<double>(p, first, tile, begin, end, panel, pack, sums);
    case Dtype::f16: return spmm_rows<Half>(p, first, tile, begin, end, panel, pack, sums);
    case Dtype::bf16: return spmm_rows<BFloat>(p, first, tile, begin, end, panel, pack, sums);
  }
}

template <typename T>
static void widen_all(const T* from, int64_t n, float* to) {
  constexpr int W = Lanes<float>::count;
  int64_t i = 0;
  for (; i + W <= n; i += W) store(to + i, load(from + i));
  for (; i < n; ++i) to[i] = widen_one(from[i]);
}

// n elements of a half dtype as floats.
static void widen(const void* from, Dtype dtype, int64_t n, float* to) {
  if (dtype == Dtype::bf16)
    widen_all(static_cast<const BFloat*>(from), n, to);
  else
    widen_all(static_cast<const Half*>(from), n, to);
}

static int64_t vector_bytes() { return kVectorBytes; }
