// Squares of vectors summed at once, by shuffles. Included by bodies after lanes_body.h.

// The sums of W vectors in one vector, each in the same order, whatever its place.
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
