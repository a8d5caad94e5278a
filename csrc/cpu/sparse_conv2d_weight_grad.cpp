// The weight gradient of a sparse convolution, at the pattern only: one dot product of two slabs per value and tile.
#include <algorithm>
#include <cstring>

#include "elements.h"
#include "scratch.h"
#include "sparse_conv2d.h"
#include "sparse_conv2d_geometry.h"
#include "sparse_conv2d_lanes.h"
#include "sparse_conv2d_weight.h"
#include "sparse_conv2d_weight_grad_batch_last.h"
#include "sparse_conv2d_weight_grad_planes.h"

#define SPARSE_OPS_BODY "cpu/sparse_conv2d_weight_grad_body.h"
#include "../foreach_isa.h"

namespace sparse_ops {

namespace {

// The target coordinates of a tile whose tap k lies in the slab, and the slab coordinate of the first of them.
struct Span {
  int64_t begin, count, source;
};

std::vector<Span> spans(const ConvAxis& axis, int64_t n, bool whole) {
  std::vector<Span> result;
  for (int64_t k = 0; k < axis.kernel; ++k) {
    int64_t begin = 0, end = n;
    const int64_t first = k * axis.dilation - (whole ? axis.padding : 0);
    if (whole) {
      while (begin < end && begin * axis.stride + first < 0) ++begin;
      while (end > begin && (end - 1) * axis.stride + first >= axis.source) --end;
    }
    result.push_back({begin, end - begin, begin * axis.stride + first});
  }
  return result;
}

template <typename T>
void dots(const ConvImages& x, const ConvImages& dy, const int32_t* row_offsets, const int32_t* columns, T* dvalues,
          int64_t groups, const ConvAxis& h, const ConvAxis& w) {
  if (x.layout == ConvLayout::batch_last)
    return conv_weight_grad_batch_last(x, dy, row_offsets, columns, dvalues, groups, h, w);
  using A = Accumulator<T>;
  constexpr int64_t kLanes = 64 / sizeof(A), kMostSegments = 8;
  const int64_t rows = dy.channels, nnz = row_offsets[rows], taps = h.kernel * w.kernel;
  if (nnz == 0) return;
  if (conv_weight_grad_planes(x, dy, row_offsets, columns, dvalues, groups, h, w)) return;
  const bool empty = dy.images * dy.rows * dy.cols == 0;
  const double density = static_cast<double>(nnz) / static_cast<double>(std::max<int64_t>(rows, 1));
  const ConvTiling tiling =
      conv_tiling(h, w, dy.images, x.channels, rows, density, kLanes, x.layout == ConvLayout::channels_last);
  const int64_t x_plane = tiling.source_rows * tiling.source_cols, plane = tiling.rows * tiling.cols;
  const auto rows_of = spans(h, tiling.rows, tiling.whole), cols_of = spans(w, tiling.cols, tiling.whole);
  const int64_t last_rows = h.target - (tiling.bands - 1) * tiling.rows;  // of an image's last band

  // Tiles are summed in their order within a fixed number of segments, and these in their order: the same bits for any
  // number of threads.
  const int64_t tiles = empty ? 0 : tiling.tiles(), segments = std::min(tiles, kMostSegments);
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t pieces = threads == 1 || segments == 0 ? 1 : std::min((2 * threads + segments - 1) / segments, rows);
  std::vector<int64_t> costs(row_offsets, row_offsets + rows + 1);
  const auto cuts = conv_cuts(rows, pieces, costs);
  std::vector<double> partial(segments * nnz, 0.0);
  const auto dot = SPARSE_OPS_DISPATCH(window_dot<A>);

  parallel(0, segments * pieces, 1, [&](int64_t begin, int64_t end) {
    A* x_slab = static_cast<A*>(scratch<kConvSlab>(x.channels * x_plane * 64));
    A* dy_slab = static_cast<A*>(scratch<kConvOut>(dy.channels * plane * 64));
    for (int64_t item = begin; item < end; ++item) {
      const int64_t segment = item / pieces, piece = item % pieces;
      double* sums = partial.data() + segment * nnz;
      for (int64_t tile = segment * tiles / segments; tile < (segment + 1) * tiles / segments; ++tile) {
        const int64_t first = tile / tiling.panels * kLanes, col = tile % tiling.panels * tiling.cols;
        conv_pack(x, {first, tiling.bands, tiling.whole ? 0 : h.origin(0), h.origin(tiling.rows) - h.origin(0),
                      tiling.whole ? 0 : w.origin(col), tiling.source_rows, tiling.source_cols}, 0, x.channels, x_slab);
        conv_pack(dy, {first, tiling.bands, 0, tiling.rows, col, tiling.rows, tiling.cols}, 0, dy.channels, dy_slab);
        alignas(64) int64_t kept[8];  // the lanes whose band is not an image's last
        for (int64_t l = 0; l < kLanes; ++l)
          std::memset(reinterpret_cast<unsigned char*>(kept) + l * sizeof(A),
                      (first + l) % tiling.bands == tiling.bands - 1 ? 0 : 0xff, sizeof(A));
        for (int64_t r = cuts[piece]; r < cuts[piece + 1]; ++r) {
          const int64_t group = r / (rows / groups) * (x.channels / groups);
          for (int64_t i = row_offsets[r]; i < row_offsets[r + 1]; ++i) {
            const int64_t c = columns[i] / taps, tap = columns[i] % taps;
            const Span &sh = rows_of[tap / w.kernel], &sw = cols_of[tap % w.kernel];
            const A* from = x_slab + ((group + c) * x_plane + sh.source * tiling.source_cols + sw.source) * kLanes;
            const A* with = dy_slab + (r * plane + sh.begin * tiling.cols + sw.begin) * kLanes;
            sums[i] += dot(from, h.stride * tiling.source_cols, w.stride, with, tiling.cols, sh.count,
                           std::min(sw.count, w.target - col - sw.begin), last_rows - sh.begin, kept);
          }
        }
      }
    }
  });
  for (int64_t i = 0; i < nnz; ++i) {
    double sum = 0;
    for (int64_t s = 0; s < segments; ++s) sum += partial[s * nnz + i];
    narrow(static_cast<A>(sum), dvalues + i);
  }
}

}  // namespace

void sparse_conv2d_weight_grad(Tensor x, Tensor dy, Tensor row_offsets, Tensor columns, Tensor dvalues,
                               Sizes kernel_size, Sizes stride, Sizes padding, Sizes dilation, int64_t groups,
                               int64_t x_layout, int64_t dy_layout) {
  const auto images = [](const Tensor& t, int64_t layout) {
    void* data = const_cast<void*>(t.const_data_ptr());
    return ConvImages{data,      t.scalar_type(), static_cast<ConvLayout>(layout), t.size(0), t.size(1),
                      t.size(2), t.size(3)};
  };
  const ConvImages source = images(x, x_layout), target = images(dy, dy_layout);
  const ConvAxis h{source.rows, target.rows, kernel_size[0], stride[0], padding[0], dilation[0], false};
  const ConvAxis w{source.cols, target.cols, kernel_size[1], stride[1], padding[1], dilation[1], false};
  const auto* offsets = static_cast<const int32_t*>(row_offsets.const_data_ptr());
  const auto* cols = static_cast<const int32_t*>(columns.const_data_ptr());
  void* out = dvalues.mutable_data_ptr();
  switch (source.dtype) {
    case ScalarType::Double: return dots(source, target, offsets, cols, static_cast<double*>(out), groups, h, w);
    case ScalarType::Half: return dots(source, target, offsets, cols, static_cast<Half*>(out), groups, h, w);
    case ScalarType::BFloat16: return dots(source, target, offsets, cols, static_cast<Bfloat*>(out), groups, h, w);
    default: return dots(source, target, offsets, cols, static_cast<float*>(out), groups, h, w);
  }
}

}  // namespace sparse_ops
