// Ends a step of the sweep: the exact threshold, the next coefficients and the next bracket of each scope.
#include "sweep_finish.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kth_magnitude.h"
#include "plain_operands.h"

namespace sparse_ops {
namespace {

constexpr double kShape = 0.6585;  // s * threshold: tanh''' vanishes there
constexpr int kColumns = 7, kReport = 8;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The k-th smallest of n magnitudes: one histogram of their bits narrows the search to one bin.
template <typename T, typename Bits>
double kth_of(const T* values, int64_t n, int64_t k) {
  constexpr int kBins = 2048;
  const auto bits = [&](int64_t i) {
    Bits key;
    std::memcpy(&key, values + i, sizeof key);
    return key;
  };
  Bits least = bits(0), most = least;
  for (int64_t i = 1; i < n; ++i) {
    least = std::min(least, bits(i));
    most = std::max(most, bits(i));
  }
  int shift = 0;
  while ((most - least) >> shift >= kBins) ++shift;
  std::vector<int64_t> bins(kBins);
  for (int64_t i = 0; i < n; ++i) ++bins[(bits(i) - least) >> shift];
  Bits bin = 0;
  for (; k > bins[bin]; ++bin) k -= bins[bin];
  std::vector<T> inside;
  inside.reserve(bins[bin]);
  for (int64_t i = 0; i < n; ++i)
    if ((bits(i) - least) >> shift == bin) inside.push_back(values[i]);
  std::nth_element(inside.begin(), inside.begin() + (k - 1), inside.end());
  return inside[k - 1];
}

// One scope between two steps. Everything is decided in the candidates' type T, float or double.
template <typename T, typename Bits>
struct Scope {
  int64_t n, rank, above, count, capacity;
  double low, high;
  const T* candidates;

  static constexpr double tiny() { return std::numeric_limits<T>::denorm_min(); }

  // What the counts prove about the threshold; false where the bracket missed it or the candidates overflowed.
  bool proven(double& threshold) const {
    const int64_t below = n - above - count;
    if (rank <= below) {
      threshold = 0;
      return low <= tiny();  // all that lies below are zeros
    }
    if (rank > below + count) return false;
    T first = static_cast<T>(low);
    if (first < low) first = std::nextafter(first, std::numeric_limits<T>::infinity());
    if (std::nextafter(first, std::numeric_limits<T>::infinity()) >= high) {
      threshold = first;  // one number fits into the bracket: its multiplicity does not matter
      return true;
    }
    if (count > capacity) return false;
    threshold = kth_of<T, Bits>(candidates, count, rank - below);
    return true;
  }

  // Around the threshold that moves on as it did, as wide as it moved, with n/8192 to n/128 candidates.
  void steer(double threshold, double drift, bool hit, double* bracket) const {
    if (threshold == 0) {
      bracket[0] = bracket[1] = tiny();  // all zeros lie below, and their count proves the next zero
      return;
    }
    const double most = std::min(std::max(n / 128.0, 128.0), capacity / 2.0);
    const double least = std::min(std::max(n / 8192.0, 32.0), most);
    double half = hit ? std::max(3 * std::abs(drift), (count < least ? 0.625 : 0.45) * (high - low))
                      : std::min(std::max(2 * std::abs(drift), 0.01 * threshold), 0.05 * threshold);
    if (count > 0 && high > low && (hit || count > capacity)) half = std::min(half, 0.5 * most * (high - low) / count);
    const double from = std::max(threshold + drift - half, 0.0);
    bracket[0] = from;
    bracket[1] = std::max(threshold + drift + half, std::nextafter(std::max(from, threshold + drift), kInfinity));
  }
};

struct Settings {
  double tolerance;
  bool exact;
  double largest;  // of the candidates' type: a greater scale or factor counts as no penalty
};

template <typename T, typename Bits>
void finish_scope(const Tensors& mine, const Settings& settings, Scope<T, Bits> scope, const double* sums,
                  double* coefficients, double* bracket, double* report) {
  double N = sums[0];
  const bool finite = std::isfinite(N);
  report[6] += 1;
  if (!settings.exact && !finite) {
    report[7] = 1;
    return;
  }
  const bool complete = !settings.exact && sums[6] == static_cast<double>(scope.n);
  const double old = report[0], s_old = coefficients[2];

  double threshold = 0;
  const bool hit = complete && scope.proven(threshold);
  if (!hit) {
    const Float type = sizeof(T) == 8 ? Float::float64 : Float::float32;
    const Selection selection = select_magnitude(mine, type, scope.rank);
    if (selection.nan_tensor >= 0) {
      report[7] = 1;
      return;
    }
    const Bits key = static_cast<Bits>(selection.key);
    T value;
    std::memcpy(&value, &key, sizeof value);
    threshold = value;
  }

  double s = threshold > 0 ? kShape / threshold : 0;
  if (!(s <= settings.largest)) s = 0;
  const double ds = s_old > 0 ? (s - s_old) / s_old : 0;
  const bool steady = complete && (s == s_old || (s > 0 && s_old > 0 && std::abs(ds) <= settings.tolerance));
  double A = sums[1] + (s - s_old) * sums[2] - (s - s_old) * (s - s_old) * sums[3];
  if (!steady) {
    const SweepSums exact = magnitude_sums(mine, s);
    N = exact.n;
    A = exact.t0;
    if (!std::isfinite(N)) {
      report[7] = 1;
      return;
    }
  }
  double ratio = s > 0 && A > 0 ? N / A : 0;
  if (!(s * ratio <= settings.largest)) s = ratio = 0;

  double drift = threshold - old;
  if (settings.exact || !(std::abs(drift) < 0.5 * std::min(threshold, old))) drift = 0;  // a jump, not a movement
  scope.steer(threshold, drift, hit, bracket);
  coefficients[2] = s;
  coefficients[3] = ratio;
  const double passes = report[5] + (hit && steady ? 0 : 1);
  const double line[6] = {threshold, old, hit ? 1.0 : 0.0, static_cast<double>(scope.count), ds, passes};
  std::copy(line, line + 6, report);
  report[7] = 0;
}

}  // namespace

bool sweep_finish_(Tensors weights, Ints scopes, Ints ranks, double tolerance, bool exact, Tensor coefficients,
                   Tensor brackets, Tensor statistics, Tensor candidates, Tensor report) {
  if (!plain_operands(weights, {}, {}) || !plain_scopes(scopes, weights.size(), coefficients.size(0))) return false;
  std::vector<int64_t> sizes(ranks.size(), 0);
  for (size_t t = 0; t < weights.size(); ++t)
    if (scopes[t] >= 0) sizes[scopes[t]] += weights[t].numel();
  for (size_t r = 0; r < ranks.size(); ++r)
    if (ranks[r] < 0 || ranks[r] > sizes[r]) return false;
  auto* lines = static_cast<double*>(coefficients.mutable_data_ptr());
  auto* bracket = static_cast<double*>(brackets.mutable_data_ptr());
  auto* table = static_cast<double*>(statistics.mutable_data_ptr());
  auto* reports = static_cast<double*>(report.mutable_data_ptr());
  const int64_t capacity = candidates.size(1);
  const bool is_double = candidates.scalar_type() == ScalarType::Double;
  const Settings settings{tolerance, exact,
                          is_double ? std::numeric_limits<double>::max() : std::numeric_limits<float>::max()};

  std::vector<Tensors> members(ranks.size());
  for (size_t t = 0; t < weights.size(); ++t)
    if (scopes[t] >= 0) members[scopes[t]].push_back(weights[t]);
  for (size_t r = 0; r < ranks.size(); ++r) {
    double sums[kColumns];
    std::copy(table + r * kColumns, table + (r + 1) * kColumns, sums);
    std::fill(table + r * kColumns, table + (r + 1) * kColumns, 0.0);
    if (ranks[r] == 0 || (sums[6] == 0 && !exact)) continue;  // nothing was swept: the optimiser skipped this step
    const int64_t n = sizes[r];
    const auto finish = [&](auto zero, auto bits) {
      using T = decltype(zero);
      const Scope<T, decltype(bits)> scope{n,
                                           ranks[r],
                                           static_cast<int64_t>(sums[4]),
                                           static_cast<int64_t>(sums[5]),
                                           capacity,
                                           bracket[2 * r],
                                           bracket[2 * r + 1],
                                           static_cast<const T*>(candidates.const_data_ptr()) + r * capacity};
      finish_scope(members[r], settings, scope, sums, lines + 4 * r, bracket + 2 * r, reports + kReport * r);
    };
    is_double ? finish(double{}, uint64_t{}) : finish(float{}, uint32_t{});
  }
  return true;
}

}  // namespace sparse_ops
