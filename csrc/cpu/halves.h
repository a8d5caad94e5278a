// float16 and bfloat16 to float32 and back, block by block; include it inside a body. Rounds to nearest even.

static inline uint32_t float_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

static inline float bits_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

static inline void bfloat16_to_float(const uint16_t* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = bits_float(static_cast<uint32_t>(from[i]) << 16);
}

static inline void float_to_bfloat16(const float* from, uint16_t* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = float_bits(from[i]);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to[i] = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 | (bits >> 16 & 0x8000) : rounded);
  }
}

static inline float half_to_float_one(uint16_t h) {
  const uint32_t magnitude = h & 0x7fff, sign = static_cast<uint32_t>(h & 0x8000) << 16;
  uint32_t bits = (magnitude << 13) + (112u << 23);
  if (magnitude >= 0x7c00) bits += 112u << 23;                                  // infinity and NaN
  if (magnitude < 0x400) bits = float_bits(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  return bits_float(bits | sign);
}

static inline uint16_t float_to_half_one(float x) {
  const uint32_t bits = float_bits(x), magnitude = bits & 0x7fffffff, sign = bits >> 16 & 0x8000;
  uint32_t h;
  if (magnitude > 0x7f800000) {
    h = 0x7e00;
  } else if (magnitude >= 0x47800000) {  // 65536 and more
    h = 0x7c00;
  } else if (magnitude < 0x38800000) {  // below 2^-14: the sum's last bit is worth 2^-24, its addition rounds
    h = float_bits(bits_float(magnitude) + 0.5f) - float_bits(0.5f);
  } else {
    h = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  }
  return static_cast<uint16_t>(h | sign);
}

static inline void half_to_float(const uint16_t* from, float* to, int64_t n) {
  int64_t i = 0;
#if SPARSE_OPS_AVX2 || SPARSE_OPS_AVX512
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#endif
  for (; i < n; ++i) to[i] = half_to_float_one(from[i]);
}

static inline void float_to_half(const float* from, uint16_t* to, int64_t n) {
  int64_t i = 0;
#if SPARSE_OPS_AVX2 || SPARSE_OPS_AVX512
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < n; ++i) to[i] = float_to_half_one(from[i]);
}
