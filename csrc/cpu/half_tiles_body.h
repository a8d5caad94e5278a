// Tiles of a half dtype that stay halves in the panel, so that a product takes half of the bytes from the L2 cache:
// they become floats on their way into a register, or are multiplied in pairs where the processor can. Included by
// bodies after tiles_body.h.

struct HalfLanes {
  static constexpr int count = 2 * Lanes<float>::count;
};

// 2 W columns of a panel from `lines` <= 2 W lines of x, as pack_lines; pairs of them are the words of a square.
template <typename T, bool Full>
static inline void pack_half_lines(const T* x, int64_t total, int64_t lines, int64_t depth, int64_t tile, T* panel) {
  constexpr int W = Lanes<float>::count;
  int64_t k = 0;
  for (; k + W <= depth; k += W) {
    Vector<float> pairs[W];  // a square of words is transposed, whatever they mean
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
      Words pair{};
      if (Full || 2 * i < lines) pair = words_of(x + 2 * i * total + k);
      if (Full || 2 * i + 1 < lines) pair |= words_of(x + (2 * i + 1) * total + k) << 16;
      std::memcpy(&pairs[i], &pair, sizeof(pair));
    }
    transpose<float>(pairs);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) std::memcpy(panel + (k + i) * tile, &pairs[i], sizeof(pairs[i]));
  }
  for (; k < depth; ++k)
    for (int i = 0; i < 2 * W; ++i) panel[k * tile + i] = Full || i < lines ? x[i * total + k] : T{0};
}

// As pack_panel, without a change of type.
template <typename T>
static void pack_halves(const T* x, int64_t row, int64_t depth, int64_t total, int64_t n, int64_t first, int64_t tile,
                        bool transposed, T* panel) {
  constexpr int H = HalfLanes::count;
  const int64_t count = n - first < tile ? n - first : tile;
  if (transposed) {
    x += first * total + row;
    for (int64_t j = 0; j < tile; j += H, x += H * total) {
      if (j + H <= count)
        pack_half_lines<T, true>(x, total, H, depth, tile, panel + j);
      else
        pack_half_lines<T, false>(x, total, count - j, depth, tile, panel + j);
    }
    return;
  }
  x += row * n + first;
  for (int64_t k = 0; k < depth; ++k) {
    std::memcpy(panel + k * tile, x + k * n, count * sizeof(T));
    std::memset(panel + k * tile + count, 0, (tile - count) * sizeof(T));
  }
}

// A vector of halves as two of floats, in an order that `join` (half_products_body.h) undoes.
static inline void split(const BFloat* from, Vector<float>* a, Vector<float>* b) {
  Words words;
  std::memcpy(&words, from, sizeof(words));
  const Words even = words << 16, odd = words & 0xffff0000;
  std::memcpy(a, &even, sizeof(even));
  std::memcpy(b, &odd, sizeof(odd));
}

static inline void split(const Half* from, Vector<float>* a, Vector<float>* b) {
  *a = load(from);
  *b = load(from + Lanes<float>::count);
}

#if SPARSE_OPS_AVX512
#define SPARSE_OPS_PAIRS __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")))
#endif
