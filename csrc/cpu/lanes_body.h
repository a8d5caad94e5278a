// Vectors as wide as the instruction set, in the compiler's own vector types; halves become floats when they are
// loaded. Included by bodies (foreach_isa.h), so everything is in the namespace of one instruction set.

constexpr int kVectorBytes = SPARSE_OPS_AVX512 ? 64 : SPARSE_OPS_AVX2 ? 32 : 16;

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

// The type a dtype is computed in, and how many of it a vector holds.
template <typename T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

template <typename A>
struct Lanes {
  static constexpr int count = kVectorBytes / static_cast<int>(sizeof(A));
  typedef A vector __attribute__((vector_size(kVectorBytes)));
};
template <typename A>
using Vector = typename Lanes<A>::vector;
typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef uint16_t HalfWords __attribute__((vector_size(kVectorBytes / 2)));

static inline float widen_one(Half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
  float value;
  if (magnitude >= 0x7c00) {  // infinity, NaN
    const uint32_t bits = 0x7f800000 | (magnitude << 13);
    std::memcpy(&value, &bits, 4);
  } else {  // 2^112 moves the exponent's bias, exact for subnormals too
    const uint32_t bits = magnitude << 13;
    std::memcpy(&value, &bits, 4);
    value *= 0x1p112f;
  }
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits |= sign;
  std::memcpy(&value, &bits, 4);
  return value;
}

static inline float widen_one(BFloat x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

static inline float widen_one(float x) { return x; }
static inline double widen_one(double x) { return x; }

static inline void narrow_one(float x, float* to) { *to = x; }
static inline void narrow_one(double x, double* to) { *to = x; }

static inline void narrow_one(float x, BFloat* to) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  to->bits = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline void narrow_one(float x, Half* to) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00;
  } else if (magnitude >= 0x477ff000) {  // 65520 and more round to infinity
    half = 0x7c00;
  } else if (magnitude < 0x38800000) {  // a subnormal: adding 0.5 leaves its rounded bits at the bottom
    float value;
    std::memcpy(&value, &magnitude, 4);
    value += 0.5f;
    std::memcpy(&half, &value, 4);
    half -= 0x3f000000;
  } else {
    half = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  }
  to->bits = static_cast<uint16_t>(half | sign);
}

static inline Vector<float> load(const float* p) {
  Vector<float> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

static inline Vector<double> load(const double* p) {
  Vector<double> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

// As many halves as a vector has words, each in the lower half of one. gcc 12 converts for AVX2 in two pieces.
static inline Words words_of(const void* halves) {
#if SPARSE_OPS_AVX2
  return (Words)_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(halves)));
#else
  HalfWords half;
  std::memcpy(&half, halves, sizeof(half));
  return __builtin_convertvector(half, Words);
#endif
}

static inline Vector<float> load(const BFloat* p) {
  const Words words = words_of(p) << 16;
  Vector<float> v;
  std::memcpy(&v, &words, sizeof(v));
  return v;
}

static inline Vector<float> load(const Half* p) {
#if SPARSE_OPS_AVX512
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif SPARSE_OPS_AVX2
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vector<float> v;
  for (int i = 0; i < Lanes<float>::count; ++i) v[i] = widen_one(p[i]);
  return v;
#endif
}

static inline void store(float* p, const Vector<float>& v) { std::memcpy(p, &v, sizeof(v)); }
static inline void store(double* p, const Vector<double>& v) { std::memcpy(p, &v, sizeof(v)); }

static inline void store(BFloat* p, const Vector<float>& v) {
  Words bits;
  std::memcpy(&bits, &v, sizeof(v));
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Words nan = (bits & 0x7fffffff) > 0x7f800000;  // all ones where true
  const Words words = (rounded & ~nan) | (nan & 0x7fc0);
#if SPARSE_OPS_AVX2
  const __m128i low = _mm256_castsi256_si128((__m256i)words), high = _mm256_extracti128_si256((__m256i)words, 1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi32(low, high));
#else
  const HalfWords half = __builtin_convertvector(words, HalfWords);
  std::memcpy(p, &half, sizeof(half));
#endif
}

static inline void store(Half* p, const Vector<float>& v) {
#if SPARSE_OPS_AVX512
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif SPARSE_OPS_AVX2
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < Lanes<float>::count; ++i) narrow_one(v[i], p + i);
#endif
}

// (low[0], high[0], low[1], high[1], ...) of the first and of the second halves.
static inline void interleave(const Vector<float>& a, const Vector<float>& b, Vector<float>* low, Vector<float>* high) {
#if SPARSE_OPS_AVX512
  typedef int32_t Index __attribute__((vector_size(64)));
  *low = __builtin_shuffle(a, b, Index{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
  *high = __builtin_shuffle(a, b, Index{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
#elif SPARSE_OPS_AVX2
  typedef int32_t Index __attribute__((vector_size(32)));
  *low = __builtin_shuffle(a, b, Index{0, 8, 1, 9, 2, 10, 3, 11});
  *high = __builtin_shuffle(a, b, Index{4, 12, 5, 13, 6, 14, 7, 15});
#else
  typedef int32_t Index __attribute__((vector_size(16)));
  *low = __builtin_shuffle(a, b, Index{0, 4, 1, 5});
  *high = __builtin_shuffle(a, b, Index{2, 6, 3, 7});
#endif
}

static inline void interleave(const Vector<double>& a, const Vector<double>& b, Vector<double>* low,
                              Vector<double>* high) {
#if SPARSE_OPS_AVX512
  typedef int64_t Index __attribute__((vector_size(64)));
  *low = __builtin_shuffle(a, b, Index{0, 8, 1, 9, 2, 10, 3, 11});
  *high = __builtin_shuffle(a, b, Index{4, 12, 5, 13, 6, 14, 7, 15});
#elif SPARSE_OPS_AVX2
  typedef int64_t Index __attribute__((vector_size(32)));
  *low = __builtin_shuffle(a, b, Index{0, 4, 1, 5});
  *high = __builtin_shuffle(a, b, Index{2, 6, 3, 7});
#else
  typedef int64_t Index __attribute__((vector_size(16)));
  *low = __builtin_shuffle(a, b, Index{0, 2});
  *high = __builtin_shuffle(a, b, Index{1, 3});
#endif
}

// Transposes a square of vectors by log2(lanes) rounds of a perfect shuffle.
template <typename A>
static inline void transpose(Vector<A>* rows) {
  constexpr int W = Lanes<A>::count;
  Vector<A> other[W];
#pragma GCC unroll 4
  for (int length = 1; length < W; length *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < W / 2; ++i) interleave(rows[i], rows[i + W / 2], &other[2 * i], &other[2 * i + 1]);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) rows[i] = other[i];
  }
}
