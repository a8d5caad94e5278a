// Soft thresholding per group and its gradients: the groups and their chunks over the threads.
#include "soft_threshold.h"

#include <vector>

#include "chunks.h"
#include "floats.h"

#define SPARSE_OPS_BODY "cpu/soft_threshold_body.h"
#include "../foreach_isa.h"

namespace sparse_ops {
namespace {

// Equal groups, one after the other in storage, each cut into chunks of fixed size.
struct Groups {
  int64_t count, size, chunks;

  Groups(const Tensor& weight, int64_t count)
      : count(count), size(count ? weight.numel() / count : 0), chunks((size + kChunkSize - 1) / kChunkSize) {}

  int64_t pieces() const { return count * chunks; }

  // f(piece, group, first element in storage, number of elements), threads cut where it pleases.
  template <typename F>
  void each(const F& f) const {
    const int64_t at_once = size < kChunkSize / 2 ? kChunkSize / 2 / (size > 0 ? size : 1) : 1;
    parallel(0, pieces(), at_once, [&](int64_t begin, int64_t end) {
      for (int64_t piece = begin; piece < end; ++piece) {
        const int64_t group = piece / chunks, first = piece % chunks * kChunkSize;
        f(piece, group, group * size + first, size - first < kChunkSize ? size - first : kChunkSize);
      }
    });
  }

  // Sums of a group's chunks in their order: the same bits for any number of threads.
  double sum(const std::vector<double>& partials, int64_t group) const {
    double total = 0;
    for (int64_t c = 0; c < chunks; ++c) total += partials[group * chunks + c];
    return total;
  }
};

struct Level {
  double threshold, by_magnitude, by_threshold;
};

Level level_of(double threshold, bool relative, double norm, Float type) {
  const double t = relative ? threshold * norm : threshold;
  return {type == Float::float64 ? t : static_cast<float>(t), relative ? threshold : 0, relative ? norm : 1};
}

}  // namespace

void soft_threshold(Tensor weight, Tensor thresholds, bool relative, Tensor y, Tensor levels) {
  const Groups groups(weight, thresholds.numel());
  const Float type = float_type(weight.scalar_type());
  const auto* given = static_cast<const double*>(thresholds.const_data_ptr());
  auto* level = static_cast<Level*>(levels.mutable_data_ptr());
  const auto* w = static_cast<const char*>(weight.const_data_ptr());
  auto* to = static_cast<char*>(y.mutable_data_ptr());
  const int64_t size = weight.element_size();
  const auto norm = SPARSE_OPS_DISPATCH(soft_threshold_norm);
  const auto apply = SPARSE_OPS_DISPATCH(soft_threshold_apply);
  if (!relative || groups.chunks == 0)
    for (int64_t g = 0; g < groups.count; ++g) level[g] = level_of(given[g], relative, 0, type);
  if (relative && groups.chunks > 1) {
    std::vector<double> partials(groups.pieces());
    groups.each([&](int64_t piece, int64_t, int64_t first, int64_t n) {
      partials[piece] = norm(w + first * size, type, n);
    });
    for (int64_t g = 0; g < groups.count; ++g) level[g] = level_of(given[g], true, groups.sum(partials, g), type);
  }
  groups.each([&](int64_t, int64_t g, int64_t first, int64_t n) {
    if (relative && groups.chunks == 1)  // the group is still in the cache when it is read again
      level[g] = level_of(given[g], true, norm(w + first * size, type, n), type);
    apply(w + first * size, type, n, level[g].threshold, to + first * size);
  });
}

void soft_threshold_backward(Tensor grad, Tensor weight, Tensor levels, bool relative, bool elu, Tensor grad_weight,
                             Tensor sums) {
  const Groups groups(weight, sums.numel());
  const Float type = float_type(weight.scalar_type());
  const auto* level = static_cast<const Level*>(levels.const_data_ptr());
  const auto* g = static_cast<const char*>(grad.const_data_ptr());
  const auto* w = static_cast<const char*>(weight.const_data_ptr());
  auto* to = static_cast<char*>(grad_weight.mutable_data_ptr());
  auto* out = static_cast<double*>(sums.mutable_data_ptr());
  const int64_t size = weight.element_size();
  const auto grads = SPARSE_OPS_DISPATCH(soft_threshold_grads);
  std::vector<double> partials(groups.pieces());
  const auto pass = [&](bool write, bool pull) {
    groups.each([&](int64_t piece, int64_t group, int64_t first, int64_t n) {
      const Level& at = level[group];
      const int64_t offset = first * size;
      double by_threshold = pull ? out[group] : 0;
      if (relative && groups.chunks == 1)
        out[group] = by_threshold = grads(g + offset, w + offset, type, n, at.threshold, 0, elu, nullptr);
      const double part = grads(g + offset, w + offset, type, n, at.threshold, by_threshold * at.by_magnitude, elu,
                                write ? to + offset : nullptr);
      if (!pull) partials[piece] = part;
    });
  };
  pass(!relative || groups.chunks == 1, false);
  for (int64_t group = 0; group < groups.count; ++group) out[group] = groups.sum(partials, group);
  if (relative && groups.chunks > 1) pass(true, true);
}

}  // namespace sparse_ops
