// Some of the lanes of a register of AVX2: the first n, and those of a mask. Included by bodies.

#if SPARSE_OPS_AVX2
// Sign bits in the first n of eight lanes, 0 <= n <= 8.
static inline __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// For each mask of eight lanes, a byte for each lane: which lane goes there when those of the mask move together, and
// which when the first lanes move to the mask's.
struct LaneOrders {
  uint64_t together[256], apart[256];
};
static constexpr LaneOrders lane_orders() {
  LaneOrders orders{};
  for (int mask = 0; mask < 256; ++mask)
    for (uint64_t lane = 0, n = 0; lane < 8; ++lane) {
      if (!(mask >> lane & 1)) continue;
      orders.together[mask] |= lane << 8 * n;
      orders.apart[mask] |= n++ << 8 * lane;
    }
  return orders;
}
static constexpr LaneOrders kLaneOrders = lane_orders();

static inline __m256 ordered(__m256 x, uint64_t order) {
  const __m128i bytes = _mm_cvtsi64_si128(static_cast<int64_t>(order));
  return _mm256_permutevar8x32_ps(x, _mm256_cvtepu8_epi32(bytes));
}

// The lanes of the mask in their order, then any.
static inline __m256 compressed(__m256 x, unsigned mask) { return ordered(x, kLaneOrders.together[mask]); }

// The first lanes in those of the mask, 0 in the others.
static inline __m256 expanded(__m256 x, unsigned mask) {
  const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i kept = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(mask)), bits), bits);
  return _mm256_and_ps(ordered(x, kLaneOrders.apart[mask]), _mm256_castsi256_ps(kept));
}
#endif
