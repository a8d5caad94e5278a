// Soft thresholding of one chunk of a group: its sum of magnitudes, the output, and the gradients.
#include "lanes_body.h"
#include "tanh.h"

template <typename A>
struct Totals {
  typedef double vector __attribute__((vector_size(8 * Lanes<A>::count)));
};

template <typename A>
static inline Vector<A> spread(A x) {
  return x - Vector<A>{};
}

template <typename A>
static inline Vector<A> magnitude(const Vector<A>& w) {
  return w < 0 ? -w : w;
}

// 1, -1, and w itself where it is 0 or NaN.
template <typename A>
static inline Vector<A> sign_of(const Vector<A>& w) {
  return w > 0 ? spread<A>(1) : w < 0 ? spread<A>(-1) : w;
}

// exp of x <= 0, by the polynomial of tanh.h; 0 below -87, where float32 leaves its normal range.
static inline Vector<float> exp_of(const Vector<float>& x) {
  const auto gone = x < -87.0f;
  const Vector<float> bounded = gone ? spread(-87.0f) : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vector<float> n = (bounded * kLog2E + magic) - magic;
  const Vector<float> r = (bounded - n * kLn2High) - n * kLn2Low;
  const Vector<float> p = r * r * ((((kExp6 * r + kExp5) * r + kExp4) * r + kExp3) * r + kExp2) + r;
  const Words bits = __builtin_convertvector(n + 127.0f, Words) << 23;
  Vector<float> power;
  std::memcpy(&power, &bits, sizeof(bits));
  return gone ? Vector<float>{} : power * (1.0f + p);
}

static inline Vector<double> exp_of(const Vector<double>& x) {
  Vector<double> result;
  for (int i = 0; i < Lanes<double>::count; ++i) result[i] = std::exp(x[i]);
  return result;
}

template <typename A>
static inline double total(const typename Totals<A>::vector& sums) {
  double sum = 0;
  for (int i = 0; i < Lanes<A>::count; ++i) sum += sums[i];
  return sum;
}

// body(a, b, to) over whole vectors, and over one padded with zeros for the rest: the same code for both. `to` may be
// null; then the body must not write.
template <typename T, typename Body>
static inline void each_vector(const T* a, const T* b, T* to, int64_t n, const Body& body) {
  constexpr int W = Lanes<typename Compute<T>::type>::count;
  int64_t i = 0;
  for (; i + W <= n; i += W) body(a + i, b + i, to + i);
  if (i == n) return;
  T padded_a[W] = {}, padded_b[W] = {}, padded_to[W];
  const size_t bytes = (n - i) * sizeof(T);
  std::memcpy(padded_a, a + i, bytes);
  std::memcpy(padded_b, b + i, bytes);
  body(padded_a, padded_b, padded_to);
  if (to != nullptr) std::memcpy(to + i, padded_to, bytes);
}

template <typename T>
static double norm_of(const T* w, int64_t n) {
  using A = typename Compute<T>::type;
  typename Totals<A>::vector sums = {};
  each_vector<T>(w, w, nullptr, n, [&](const T* w, const T*, T*) {
    const Vector<A> u = magnitude<A>(load(w));
    sums += __builtin_convertvector(u, typename Totals<A>::vector);
  });
  return total<A>(sums);
}

template <typename T>
static void apply_to(const T* w, int64_t n, double threshold, T* y) {
  using A = typename Compute<T>::type;
  const Vector<A> t = spread(static_cast<A>(threshold));
  each_vector<T>(w, w, y, n, [&](const T* w, const T*, T* y) {
    const Vector<A> x = load(w), rest = magnitude<A>(x) - t;
    store(y, rest <= 0 ? Vector<A>{} : rest * sign_of<A>(x));  // a NaN is not <= 0 and stays one
  });
}

// Returns -sum g' sign(w), the gradient by the threshold, where g' is what passes of g; writes grads = g' + pull
// sign(w).
template <typename T, bool kElu, bool kWrite>
static double grads_of(const T* g, const T* w, int64_t n, double threshold, double pull, T* grads) {
  using A = typename Compute<T>::type;
  const Vector<A> t = spread(static_cast<A>(threshold)), from_all = spread(static_cast<A>(pull));
  typename Totals<A>::vector sums = {};
  each_vector<T>(g, w, grads, n, [&](const T* g, const T* w, T* grads) {
    const Vector<A> x = load(w), dy = load(g), rest = magnitude<A>(x) - t, sign = sign_of<A>(x);
    const Vector<A> passing = rest <= 0 ? (kElu ? dy * exp_of(rest) : Vector<A>{}) : dy;
    const Vector<A> term = passing * sign;
    sums -= __builtin_convertvector(term, typename Totals<A>::vector);
    if (kWrite) store(grads, passing + from_all * sign);
  });
  return total<A>(sums);
}

// f(T{}) with the element type of `type`.
template <typename F>
static auto with_type(Float type, const F& f) {
  switch (type) {
    case Float::float16: return f(Half{});
    case Float::bfloat16: return f(BFloat{});
    case Float::float64: return f(double{});
    default: return f(float{});
  }
}

static double soft_threshold_norm(const void* w, Float type, int64_t n) {
  return with_type(type, [&](auto element) { return norm_of(static_cast<const decltype(element)*>(w), n); });
}

static void soft_threshold_apply(const void* w, Float type, int64_t n, double threshold, void* y) {
  with_type(type, [&](auto element) {
    using T = decltype(element);
    apply_to(static_cast<const T*>(w), n, threshold, static_cast<T*>(y));
  });
}

// grads may be null: only the sum.
static double soft_threshold_grads(const void* g, const void* w, Float type, int64_t n, double threshold, double pull,
                                   bool elu, void* grads) {
  return with_type(type, [&](auto element) {
    using T = decltype(element);
    const T *dy = static_cast<const T*>(g), *x = static_cast<const T*>(w);
    T* to = static_cast<T*>(grads);
    if (to == nullptr)
      return elu ? grads_of<T, true, false>(dy, x, n, threshold, pull, to)
                 : grads_of<T, false, false>(dy, x, n, threshold, pull, to);
    return elu ? grads_of<T, true, true>(dy, x, n, threshold, pull, to)
               : grads_of<T, false, true>(dy, x, n, threshold, pull, to);
  });
}
