// A row of dY in registers times rows of the panel. Included by csr_sddmm_body.h.

// A row of dY in registers, and its product with a row of the panel: NV vectors of either.
template <typename T, int NV>
struct Row {  // of the compute type
  using A = T;
  static constexpr int width = NV * Lanes<A>::count;
  Vector<A> part[NV];
};
template <typename T, int NV>
struct HalfRow {
  using A = float;
  static constexpr int width = NV * HalfLanes::count;
  Vector<float> part[2 * NV];
};

template <typename T, int NV>
static inline void take(const T* dy, Row<T, NV>* row) {
#pragma GCC unroll 8
  for (int u = 0; u < NV; ++u) row->part[u] = load(dy + u * Lanes<T>::count);
}
template <typename T, int NV>
static inline void take(const T* dy, HalfRow<T, NV>* row) {
#pragma GCC unroll 4
  for (int u = 0; u < NV; ++u) split(dy + u * HalfLanes::count, &row->part[2 * u], &row->part[2 * u + 1]);
}
template <typename T, int NV>
static inline Vector<T> product(const Row<T, NV>& row, const T* from) {
  Vector<T> sum = row.part[0] * load(from);
#pragma GCC unroll 8
  for (int u = 1; u < NV; ++u) sum += row.part[u] * load(from + u * Lanes<T>::count);
  return sum;
}
template <typename T, int NV>
static inline Vector<float> product(const HalfRow<T, NV>& row, const T* from) {
  Vector<float> even{}, odd{};
#pragma GCC unroll 4
  for (int u = 0; u < NV; ++u) {
    Vector<float> a, b;
    split(from + u * HalfLanes::count, &a, &b);
    even += row.part[2 * u] * a;
    odd += row.part[2 * u + 1] * b;
  }
  return even + odd;
}
