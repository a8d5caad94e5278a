// y = activation(sum + addend), on vectors and on single numbers; included by bodies after lanes_body.h.
#include "gelu_body.h"

static inline Vector<float> gelu(Vector<float> x) { return gelu_of(x); }
static inline float gelu_one(float x) { return gelu_of(Vector<float>{} + x)[0]; }
static inline Vector<double> gelu(Vector<double> x) {
  for (int i = 0; i < Lanes<double>::count; ++i) x[i] = gelu_one(x[i]);
  return x;
}

// gelu of n numbers in place, and of what follows them up to a multiple of two vectors. Apart from what stores them: a
// loop of its own keeps its constants in registers (2.0 to 2.9 ns an element inside of a transposition, Zen 3).
template <typename A>
__attribute__((noinline)) static void gelu_all(A* x, int64_t n) {
  constexpr int W = Lanes<A>::count;
  for (int64_t i = 0; i < n; i += 2 * W) {
    const Vector<A> first = gelu(load(x + i)), second = gelu(load(x + i + W));
    store(x + i, first);
    store(x + i + W, second);
  }
}

// addend: as many elements, or null. A NaN stays one.
template <typename T, typename V>
static inline V finished(V sum, const T* addend, Activation activation) {
  if (addend != nullptr) sum += load(addend);
  if (activation == Activation::relu) return sum < 0 ? V{} : sum;
  return activation == Activation::gelu ? gelu(sum) : sum;
}

template <typename T, typename A>
static inline A finished_one(A sum, const T* addend, Activation activation) {
  if (addend != nullptr) sum += widen_one(*addend);
  if (activation == Activation::relu) return sum < 0 ? 0 : sum;
  return activation == Activation::gelu ? gelu_one(sum) : sum;
}
