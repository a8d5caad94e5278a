// Y = A B: a tile of B, packed with N innermost, stays in the L2 cache while each row of A runs over it once, with the
// sums of the row's tile in registers: per nonzero one broadcast and one FMA per vector, no store.
#include "lanes_body.h"
#include "activation_body.h"
#include "tiles_body.h"
#include "half_tiles_body.h"
#include "half_products_body.h"

// Rows that are written together: a transposed store writes kRowBlock numbers in a row, then those of the next sample,
// whose place may fall into the same set of the cache.
constexpr int64_t kRowBlock = 64;

#include "csr_cuts_body.h"
#include "csr_grouped_body.h"

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

// Half a vector: the panel of up to 8 samples of 512 features stays in L1 so, which it would fill otherwise.
template <typename A>
struct HalfVector {
  typedef A type __attribute__((vector_size(kVectorBytes / 2)));
};

// The same for tiles of one vector V or less: four chains of sums, since one would wait for each addition. Rows of sums
// are a whole vector apart.
template <typename A, typename V>
static void rows_times_narrow(const CsrProblem& p, const A* panel, int64_t begin, int64_t rows, A* sums) {
  constexpr int W = sizeof(V) / sizeof(A);
  const A* values = static_cast<const A*>(p.values);
  const A* bias = static_cast<const A*>(p.bias);
  for (int64_t r = begin; r < begin + rows; ++r, sums += Lanes<A>::count) {
    V sum[4] = {V{} + (bias ? bias[r] : A(0)), V{}, V{}, V{}}, from;
    int32_t i = p.offsets[r];
    const int32_t last = p.offsets[r + 1];
    for (; i + 4 <= last; i += 4)
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) {
        std::memcpy(&from, panel + static_cast<int64_t>(p.columns[i + u]) * W, sizeof(from));
        sum[u] += values[i + u] * from;
      }
    for (; i < last; ++i) {
      std::memcpy(&from, panel + static_cast<int64_t>(p.columns[i]) * W, sizeof(from));
      sum[0] += values[i] * from;
    }
    sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    std::memcpy(sums, &sum[0], sizeof(V));
  }
}

#if !SPARSE_OPS_SCALAR
// The same for rows of the panel of eight floats. A value is spread by a shuffle and columns are loaded by pairs, since
// loads are what a nonzero takes most of; and the last eight nonzeros are taken without a branch, with a row of zeros in
// the place of what belongs to the next row: the end of each loop is mispredicted, 5 ns.
static void rows_times_eight(const CsrProblem& p, const float* panel, int64_t begin, int64_t rows, float* sums) {
  alignas(32) static const float zeros[8] = {};
  const float* values = static_cast<const float*>(p.values);
  const float* bias = static_cast<const float*>(p.bias);
  const int64_t limit = p.offsets[p.M];
  for (int64_t r = begin; r < begin + rows; ++r, sums += Lanes<float>::count) {
    __m256 sum[8];
#pragma GCC unroll 8
    for (int u = 0; u < 8; ++u) sum[u] = _mm256_setzero_ps();
    int32_t i = p.offsets[r];
    const int32_t last = p.offsets[r + 1];
    const auto add = [&](int u, const __m256& value, const float* x) {
      sum[u] = _mm256_fmadd_ps(value, _mm256_loadu_ps(x), sum[u]);
    };
    for (; i + 8 <= last; i += 8) {
#pragma GCC unroll 2
      for (int h = 0; h < 8; h += 4) {
        const __m256 v = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(values + i + h));
        uint64_t low, high;
        std::memcpy(&low, p.columns + i + h, 8);
        std::memcpy(&high, p.columns + i + h + 2, 8);
        add(h, _mm256_permute_ps(v, 0x00), panel + 8 * (low & 0xffffffff));
        add(h + 1, _mm256_permute_ps(v, 0x55), panel + 8 * (low >> 32));
        add(h + 2, _mm256_permute_ps(v, 0xaa), panel + 8 * (high & 0xffffffff));
        add(h + 3, _mm256_permute_ps(v, 0xff), panel + 8 * (high >> 32));
      }
    }
    if (i + 8 <= limit) {
      const int32_t left = last - i;
      const __m256i kept = _mm256_cmpgt_epi32(_mm256_set1_epi32(left), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
      const __m256 v = _mm256_and_ps(_mm256_loadu_ps(values + i), _mm256_castsi256_ps(kept));
      const __m256 low = _mm256_permute2f128_ps(v, v, 0x00), high = _mm256_permute2f128_ps(v, v, 0x11);
      const auto row_or_zeros = [&](int u) {
        const auto nothing = reinterpret_cast<uintptr_t>(zeros);
        const auto row = reinterpret_cast<uintptr_t>(panel + 8 * static_cast<int64_t>(p.columns[i + u]));
        return reinterpret_cast<const float*>(nothing ^ ((nothing ^ row) & -static_cast<uintptr_t>(u < left)));
      };
      add(0, _mm256_permute_ps(low, 0x00), row_or_zeros(0));
      add(1, _mm256_permute_ps(low, 0x55), row_or_zeros(1));
      add(2, _mm256_permute_ps(low, 0xaa), row_or_zeros(2));
      add(3, _mm256_permute_ps(low, 0xff), row_or_zeros(3));
      add(4, _mm256_permute_ps(high, 0x00), row_or_zeros(4));
      add(5, _mm256_permute_ps(high, 0x55), row_or_zeros(5));
      add(6, _mm256_permute_ps(high, 0xaa), row_or_zeros(6));
      add(7, _mm256_permute_ps(high, 0xff), row_or_zeros(7));
    } else {
      for (; i < last; ++i) add(0, _mm256_set1_ps(values[i]), panel + 8 * static_cast<int64_t>(p.columns[i]));
    }
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) sum[u] = _mm256_add_ps(sum[u], sum[u + 4]);
    sum[0] = _mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3]));
    if (bias) sum[0] = _mm256_add_ps(sum[0], _mm256_set1_ps(bias[r]));
    _mm256_storeu_ps(sums, sum[0]);
  }
}
#endif

// Whether that was done.
template <typename A>
static inline bool times_eight(const CsrProblem&, const A*, int64_t, int64_t, int64_t, A*) {
  return false;
}
#if !SPARSE_OPS_SCALAR
static inline bool times_eight(const CsrProblem& p, const float* panel, int64_t tile, int64_t begin, int64_t rows,
                               float* sums) {
  if (tile != 8) return false;
  rows_times_eight(p, panel, begin, rows, sums);
  return true;
}
#endif

// 16 bytes of the compute type: what the gathers of N = 1 fill number by number, which is a third faster than a gather
// instruction on Zen 4 (0.28 against 0.37 to 0.39 ns a nonzero) and than scalar sums.
template <typename A>
struct Few {
  static constexpr int count = 16 / static_cast<int>(sizeof(A));
  typedef A vector __attribute__((vector_size(16)));
};

static inline Few<float>::vector few(const float* p) {
  Few<float>::vector v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
static inline Few<double>::vector few(const double* p) {
  Few<double>::vector v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
template <typename T>
static inline Few<float>::vector few(const T* p) {
  return Few<float>::vector{widen_one(p[0]), widen_one(p[1]), widen_one(p[2]), widen_one(p[3])};
}
static inline Few<float>::vector gathered(const float* x, const int32_t* at) {
  return Few<float>::vector{x[at[0]], x[at[1]], x[at[2]], x[at[3]]};
}
static inline Few<double>::vector gathered(const double* x, const int32_t* at) {
  return Few<double>::vector{x[at[0]], x[at[1]]};
}

// The sum of values[i] * x[columns[i]] for i from begin to end, in numbers of 16 bytes; `limit`: where columns end.
template <typename T, typename A>
static inline A row_times_vector(const T* values, const int32_t* columns, int32_t begin, int32_t end, int64_t,
                                 const A* x) {
  constexpr int F = Few<A>::count;
  typename Few<A>::vector sum[4] = {};  // four chains hide the latency of the addition
  int32_t i = begin;
  for (; i + 4 * F <= end; i += 4 * F)
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) sum[u] += few(values + i + u * F) * gathered(x, columns + i + u * F);
  for (; i + F <= end; i += F) sum[0] += few(values + i) * gathered(x, columns + i);
  sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  A total = 0;
  for (int u = 0; u < F; ++u) total += sum[0][u];
  for (; i < end; ++i) total += widen_one(values[i]) * x[columns[i]];
  return total;
}

#if !SPARSE_OPS_SCALAR
static inline __m256 eight(const float* p) { return _mm256_loadu_ps(p); }
static inline __m256 eight(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline __m256 eight(const BFloat* p) {
  const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
}

// Columns are loaded by pairs: loads are what a nonzero takes most of.
static inline __m128 gathered_by_pairs(const float* x, const int32_t* at) {
  uint64_t low, high;
  std::memcpy(&low, at, 8);
  std::memcpy(&high, at + 2, 8);
  return _mm_setr_ps(x[static_cast<uint32_t>(low)], x[low >> 32], x[static_cast<uint32_t>(high)], x[high >> 32]);
}

// The same with a vector of eight a turn. The last turn takes columns of the next row too, and leaves their products out:
// a loop over what remains would be mispredicted once more, 5 ns.
template <typename T>
static inline float row_times_vector(const T* values, const int32_t* columns, int32_t begin, int32_t end, int64_t limit,
                                     const float* x) {
  __m128 a = _mm_setzero_ps(), b = a;
  int32_t i = begin;
  for (; i + 8 <= end; i += 8) {
    const __m256 v = eight(values + i);
    a = _mm_fmadd_ps(_mm256_castps256_ps128(v), gathered_by_pairs(x, columns + i), a);
    b = _mm_fmadd_ps(_mm256_extractf128_ps(v, 1), gathered_by_pairs(x, columns + i + 4), b);
  }
  float rest = 0;
  if (i + 8 <= limit) {
    const __m128i left = _mm_set1_epi32(end - i);
    const __m128 low = _mm_castsi128_ps(_mm_cmpgt_epi32(left, _mm_setr_epi32(0, 1, 2, 3)));
    const __m128 high = _mm_castsi128_ps(_mm_cmpgt_epi32(left, _mm_setr_epi32(4, 5, 6, 7)));
    const __m256 v = eight(values + i);
    a = _mm_fmadd_ps(_mm_and_ps(_mm256_castps256_ps128(v), low), _mm_and_ps(gathered_by_pairs(x, columns + i), low), a);
    b = _mm_fmadd_ps(_mm_and_ps(_mm256_extractf128_ps(v, 1), high),
                     _mm_and_ps(gathered_by_pairs(x, columns + i + 4), high), b);
  } else {
    for (; i < end; ++i) rest += widen_one(values[i]) * x[columns[i]];
  }
  a = _mm_add_ps(a, b);
  a = _mm_add_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a))) + rest;
}
#endif

// N = 1: no tile, each row gathers from x, which is widened.
template <typename T, typename A>
static void rows_times_vector(const CsrProblem& p, const A* x, int64_t begin, int64_t end) {
  const T* values = static_cast<const T*>(p.values);
  const T* bias = static_cast<const T*>(p.bias);
  const T* addend = static_cast<const T*>(p.addend);
  const bool own_pass = addend == nullptr && p.activation == Activation::gelu;
  A totals[kRowBlock] = {};
  for (int64_t from = begin; from < end; from += kRowBlock) {
    const int64_t rows = end - from < kRowBlock ? end - from : kRowBlock;
    for (int64_t i = 0, r = from; i < rows; ++i, ++r) {
      totals[i] = row_times_vector(values, p.columns, p.offsets[r], p.offsets[r + 1], p.offsets[p.M], x);
      if (bias) totals[i] += widen_one(bias[r]);
      if (!own_pass) totals[i] = finished_one(totals[i], addend == nullptr ? nullptr : addend + r, p.activation);
    }
    if (own_pass) gelu_all(totals, rows);
    for (int64_t i = 0; i < rows; ++i) narrow_one(totals[i], static_cast<T*>(p.y) + from + i);
  }
}

static inline const float* widened_vector(const float* b, int64_t, float*) { return b; }
static inline const double* widened_vector(const double* b, int64_t, double*) { return b; }
template <typename T>
static inline const float* widened_vector(const T* b, int64_t n, float* panel) {
  for (int64_t k = 0; k < n; ++k) panel[k] = widen_one(b[k]);
  return panel;
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
  for (int64_t r = begin; r < end; r += kRowBlock) {
    const int64_t rows = end - r < kRowBlock ? end - r : kRowBlock;
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
  for (int64_t r = begin; r < end; r += kRowBlock) {
    const int64_t rows = end - r < kRowBlock ? end - r : kRowBlock;
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
// only if `pack`; sums hold kRowBlock * tile.
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
