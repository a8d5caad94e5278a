// Dot products over tiles of planes, summed in a fixed order.
#include "sparse_conv2d_weight_grad_planes.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "elements.h"
#include "scratch.h"
#include "sparse_conv2d_weight.h"

#define SPARSE_OPS_BODY "cpu/sparse_conv2d_weight_grad_planes_body.h"
#include "../foreach_isa.h"

namespace sparse_ops {

namespace {

// Against bands of images in lanes, one thread, ResNet-50's layers at 90 and 98 % zeros, one image: 0.5 to 0.9 of their
// time. Of 16 images 0.7 to 0.9 for 3x3 windows over 56 x 56 and 28 x 28 and 0.4 to 1.3 for 1x1 with a stride, but up
// to 1.5 of 7 x 7, which fill the lanes without a band, and up to 1.3 for 1x1. With AVX2 0.65 to 1.1 but for 3x3
// windows over 7 x 7 (Zen 3).
bool pays(const ConvImages& dy, const ConvAxis& h, const ConvAxis& w, int64_t lanes) {
  constexpr int64_t kSmall = 256, kSmallest = 64;
  if (4 * dy.images < 3 * lanes) return true;
  if (isa() == Isa::avx2) return dy.rows * dy.cols > kSmallest || h.kernel * w.kernel == 1;
  return dy.rows * dy.cols > kSmall && (h.kernel * w.kernel > 1 || h.stride * w.stride > 1);
}

}  // namespace

template <typename T>
bool conv_weight_grad_planes(const ConvImages& x, const ConvImages& dy, const int32_t* row_offsets,
                             const int32_t* columns, T* dvalues, int64_t groups, const ConvAxis& h, const ConvAxis& w) {
  using A = Accumulator<T>;
  constexpr int64_t kLanes = 64 / sizeof(A), kMostSegments = 8;
  const int64_t rows = dy.channels, nnz = row_offsets[rows], taps = h.kernel * w.kernel;
  if (dy.images * dy.rows * dy.cols == 0 || x.channels == 0 || !pays(dy, h, w, kLanes)) return false;
  const PlaneTiling t(h, w, dy.images, x.channels, kLanes, sizeof(A));
  if (!t.serves(x.channels, sizeof(A))) return false;
  const bool last = dy.layout == ConvLayout::channels_last, direct = !last && sizeof(T) == sizeof(A);
  const int64_t run = t.rows * t.w.target, area = dy.rows * dy.cols;
  const int64_t apart = direct ? rows * area : (run + kLanes - 1) / kLanes * kLanes;
  const int64_t together = t.together(apart), pitch = together * apart;
  const std::vector<ConvLine> lines = t.lines(t.rows, together, apart);
  const std::vector<ConvLine> last_lines = t.lines(t.h.target - (t.bands - 1) * t.rows, 1, apart);

  std::vector<int64_t> offsets(nnz), distance(taps);
  for (int64_t tap = 0; tap < taps; ++tap) distance[tap] = t.distance(tap);
  parallel(0, rows, std::max<int64_t>(1, 8192 * rows / nnz), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t group = r / (rows / groups) * (x.channels / groups);
      for (int64_t i = row_offsets[r]; i < row_offsets[r + 1]; ++i) {
        const int64_t c = columns[i] / static_cast<int32_t>(taps);
        offsets[i] = (group + c) * t.plane + distance[columns[i] - c * taps];
      }
    }
  });

  // Tiles are summed in their order within a fixed number of segments, and these in their order: the same bits for any
  // number of threads.
  const int64_t tiles = t.tiles(dy.images), segments = std::min(tiles, kMostSegments);
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t pieces = threads == 1 || segments % threads == 0
                             ? 1
                             : std::min((2 * threads + segments - 1) / segments, (rows + kLanes - 1) / kLanes);
  const int64_t step = last ? kLanes : 1;
  auto cuts = conv_cuts(rows, pieces, std::vector<int64_t>(row_offsets, row_offsets + rows + 1));
  for (int64_t p = 1; p < pieces; ++p) cuts[p] -= cuts[p] % step;
  std::vector<double> partial(segments * nnz, 0.0);  // given back: up to 64 bytes a value
  const auto dot = SPARSE_OPS_DISPATCH(dot_run<A>);

  parallel(0, segments * pieces, 1, [&](int64_t begin, int64_t end) {
    const int64_t bytes = x.channels * t.plane * static_cast<int64_t>(sizeof(A));
    A* planes = static_cast<A*>(scratch<kConvSlab>(bytes));
    A* runs = static_cast<A*>(scratch<kConvOut>(direct ? 0 : step * pitch * sizeof(A)));
    T* zeros = static_cast<T*>(scratch<kConvRow>(x.channels * sizeof(T)));
    std::memset(zeros, 0, x.channels * sizeof(T));
    std::memset(planes, 0, bytes);
    std::vector<double> sums;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t segment = item / pieces, first = cuts[item % pieces], until = cuts[item % pieces + 1];
      double* total = partial.data() + segment * nnz;
      for (int64_t number = segment * tiles / segments; number < (segment + 1) * tiles / segments; ++number) {
        const PlaneTile tile = t.tile(number, dy.images);
        fill_planes(x, t, tile, zeros, planes);
        const ConvLine* mine = tile.rows == t.rows ? lines.data() : last_lines.data();
        const int64_t several = std::min(together, tile.images), count = t.line_count(tile.rows);
        for (int64_t r = first; r < until; r += step) {
          const int64_t n = std::min(step, until - r);
          for (int64_t g = 0; g < tile.images; g += several) {
            const PlaneTile part{tile.first + g, std::min(several, tile.images - g), tile.row, tile.rows};
            if (!direct) read_runs<T>(dy, part, r, n, apart, pitch, runs);
            for (int64_t k = r; k < r + n; ++k) {
              const int64_t from = row_offsets[k], values = row_offsets[k + 1] - from;
              if (values == 0) continue;
              sums.assign(values, 0);
              dot({planes + t.lead + g * t.image,
                   direct ? static_cast<const A*>(dy.data) + (part.first * rows + k) * area + part.row * dy.cols
                          : runs + (k - r) * pitch,
                   mine, part.images * count, offsets.data() + from, values, sums.data()});
              for (int64_t e = 0; e < values; ++e) total[from + e] += sums[e];
            }
          }
        }
      }
    }
  });
  parallel(0, nnz, 8192, [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) {
      double sum = 0;
      for (int64_t s = 0; s < segments; ++s) sum += partial[s * nnz + e];
      narrow(static_cast<A>(sum), dvalues + e);
    }
  });
  return true;
}

#define SPARSE_OPS_WEIGHT_GRAD_PLANES(T)                                                                             \
  template bool conv_weight_grad_planes<T>(const ConvImages&, const ConvImages&, const int32_t*, const int32_t*, T*, \
                                           int64_t, const ConvAxis&, const ConvAxis&);
SPARSE_OPS_WEIGHT_GRAD_PLANES(float)
SPARSE_OPS_WEIGHT_GRAD_PLANES(double)
SPARSE_OPS_WEIGHT_GRAD_PLANES(Half)
SPARSE_OPS_WEIGHT_GRAD_PLANES(Bfloat)

}  // namespace sparse_ops
