// The sparse weight of a convolution, walked by target channel in either direction, and the lists that kernels read.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "../common.h"
#include "elements.h"
#include "sparse_conv2d_geometry.h"

namespace sparse_ops {

// CSR tensors of the weight (forward), or those of its transpose with the permutation (input gradient).
template <typename T>
struct ConvWeight {
  const T* values;
  const int32_t *offsets, *indices, *permutation;  // permutation: of the transpose alone
  bool transposed;  // said in its own right: the permutation of an empty pattern is a null pointer too
  int64_t taps, groups;
  int64_t rows, sources;  // target and source channels of one group

  int64_t count() const { return offsets[transposed ? rows * taps : rows * groups]; }

  // f(source channel, tap, value) for each value of one target channel, in a fixed order.
  template <typename F>
  void visit(int64_t row, const F& f) const {
    const int64_t first = row / rows * sources;
    if (!transposed) {
      for (int64_t i = offsets[row]; i < offsets[row + 1]; ++i) {
        const int64_t c = indices[i] / static_cast<int32_t>(taps);
        f(first + c, indices[i] - c * taps, widen(values[i]));
      }
      return;
    }
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t j = row % rows * taps + tap;
      const int32_t *at = indices + offsets[j], *end = indices + offsets[j + 1];
      if (groups > 1) at = std::lower_bound(at, end, static_cast<int32_t>(first));
      for (; at < end && *at < first + sources; ++at) f(*at, tap, widen(values[permutation[at - indices]]));
    }
  }
};

// Per target channel and class, what to add up: entries starts[row * classes + cls] and on.
template <typename A>
struct ConvLists {
  int64_t classes;
  std::vector<int64_t> starts;
  std::unique_ptr<ConvEntry<A>[]> entries;

  template <typename T>
  ConvLists(const ConvWeight<T>& weight, const std::vector<ConvClass>& h, const std::vector<ConvClass>& w,
            int64_t source_cols, int64_t plane)
      : classes(static_cast<int64_t>(h.size() * w.size())) {
    // For each tap: the classes that see it, and at which line from their pixel's first.
    struct Seen {
      int64_t cls;
      int32_t line;
    };
    const int64_t width = static_cast<int64_t>(w.front().offset.size());
    std::vector<std::vector<Seen>> seen(weight.taps);
    for (int64_t tap = 0; tap < weight.taps; ++tap)
      for (size_t i = 0; i < h.size(); ++i)
        for (size_t j = 0; j < w.size(); ++j) {
          const int32_t dh = h[i].offset[tap / width], dw = w[j].offset[tap % width];
          if (dh < 0 || dw < 0) continue;
          seen[tap].push_back({static_cast<int64_t>(i * w.size() + j), static_cast<int32_t>(dh * source_cols + dw)});
        }
    const int64_t rows = weight.rows * weight.groups, total = std::max<int64_t>(1, weight.count());
    const int64_t grain = std::max<int64_t>(1, 8192 * rows / total);  // a few microseconds of work per thread at least
    starts.assign(rows * classes + 1, 0);
    parallel(0, rows, grain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        weight.visit(row, [&](int64_t, int64_t tap, A) {
          for (const Seen& s : seen[tap]) ++starts[row * classes + s.cls + 1];
        });
    });
    for (size_t i = 1; i < starts.size(); ++i) starts[i] += starts[i - 1];
    entries.reset(new ConvEntry<A>[starts.back()]);
    parallel(0, rows, grain, [&](int64_t begin, int64_t end) {
      std::vector<int64_t> next(classes);
      for (int64_t row = begin; row < end; ++row) {
        std::copy_n(starts.begin() + row * classes, classes, next.begin());
        weight.visit(row, [&](int64_t channel, int64_t tap, A value) {
          for (const Seen& s : seen[tap])
            entries[next[s.cls]++] = {static_cast<int32_t>(channel * plane) + s.line, value};
        });
      }
    });
  }
};

// Cuts rows into `pieces` runs of about equal work; costs: rows + 1 running sums. Returns pieces + 1 row numbers.
inline std::vector<int64_t> conv_cuts(int64_t rows, int64_t pieces, const std::vector<int64_t>& costs) {
  std::vector<int64_t> cuts(pieces + 1, rows);
  for (int64_t p = 0; p < pieces; ++p) {
    const int64_t wanted = costs.front() + (costs.back() - costs.front()) * p / pieces;
    cuts[p] = std::lower_bound(costs.begin(), costs.end(), wanted) - costs.begin();
  }
  cuts[0] = 0;
  return cuts;
}

}  // namespace sparse_ops
