// Work on images with the batch innermost: tiles of pixels over threads, all target channels of a run of pixels
// together, so that the source lines in use, those around it in every channel, stay in the L2 cache.
#include "sparse_conv2d_batch_last.h"

#include <algorithm>

#include "csr_schedule.h"
#include "scratch.h"
#include "sparse_conv2d_taps.h"

#define SPARSE_OPS_BODY "cpu/sparse_conv2d_batch_last_body.h"
#include "../foreach_isa.h"

namespace sparse_ops {

template <typename T>
void conv_batch_last(const ConvImages& source, const ConvImages& target, const ConvWeight<T>& weight, const T* bias,
                     const T* addend, ConvActivation activation, const ConvAxis& h, const ConvAxis& w) {
  using A = Accumulator<T>;
  constexpr int64_t kLanes = 64 / sizeof(A), kUnits = 8;
  // Larger outputs go past the caches, which would have to read them first: ResNet-50 takes 121 ms so, 125 with 24 MB
  // and 126 without. The L3 cache (32 MB here) holds them no longer than that when the next layer reads an addend as
  // well.
  constexpr int64_t kCaches = 6 << 20;
  const int64_t rows = target.channels, images = target.images, pixels = target.rows * target.cols;
  if (rows * images * pixels == 0) return;
  STD_TORCH_CHECK(source.rows * source.cols < int64_t{1} << 31 && pixels < int64_t{1} << 31,
                  "sparse_conv2d: images of ",
                  source.rows, " x ", source.cols, " pixels to ", target.rows, " x ", target.cols, " are too large");
  const ConvTapRuns plan = conv_tap_runs(h, w, source.channels, SPARSE_OPS_DISPATCH(most_line_pixels<T>)());
  const ConvTapLists<A> lists(weight, h, w, source.channels, images);
  A* wide_bias = nullptr;
  if (bias != nullptr) {
    wide_bias = static_cast<A*>(scratch<kConvBias>(rows * sizeof(A)));
    for (int64_t r = 0; r < rows; ++r) wide_bias[r] = widen(bias[r]);
  }
  const bool stream = rows * images * pixels * static_cast<int64_t>(sizeof(T)) > kCaches;
  const auto sums = SPARSE_OPS_DISPATCH(line_sums<T>);

  const int64_t groups = (images + kLanes - 1) / kLanes, n_tiles = static_cast<int64_t>(plan.tiles.size());
  const int64_t work = (weight.count() + rows) * pixels * groups * kLanes;
  const int64_t threads = work < kSerialWork ? 1 : torch::stable::get_num_threads();
  // Of few tiles several threads share each, by target channels; of many a thread takes neighbours, which read the same
  // source lines.
  const int64_t items = groups * n_tiles;
  const int64_t pieces = threads == 1 || items >= kUnits * threads ? 1 : std::min(kUnits * threads / items + 1, rows);
  std::vector<int64_t> costs(rows + 1);
  for (int64_t r = 0; r <= rows; ++r) costs[r] = lists.starts[r * lists.taps] + 4 * r;
  auto cuts = conv_cuts(rows, pieces, costs);
  const bool full = weight.groups == 1 && weight.count() == rows * weight.sources * weight.taps;
  const bool dense = isa() >= Isa::avx512 && full;
  if (dense)  // the same channels together for any number of threads: the same order of their sums
    for (int64_t p = 1; p < pieces; ++p) cuts[p] -= cuts[p] % kDenseRows;
  const int64_t in_a_row = threads == 1 ? items : std::max<int64_t>(1, items / (kUnits * threads));
  const int64_t units = (items + in_a_row - 1) / in_a_row * pieces;
  share(threads, units, [&](const auto& next) {
    for (int64_t unit = next(); unit < units; unit = next()) {
      const int64_t piece = unit % pieces, first = unit / pieces * in_a_row, last = std::min(first + in_a_row, items);
      if (cuts[piece] == cuts[piece + 1]) continue;
      for (int64_t item = first; item < last; ++item) {
        const int64_t lane = item / n_tiles * kLanes;
        const ConvLines<A> lines{static_cast<const T*>(source.data) + lane,
                                 addend == nullptr ? nullptr : addend + lane,
                                 wide_bias,
                                 static_cast<T*>(target.data) + lane,
                                 images,
                                 source.channels,
                                 rows,
                                 static_cast<int>(std::min(kLanes, images - lane)),
                                 activation,
                                 dense,
                                 isa() == Isa::avx512_bf16,
                                 stream && images - lane >= kLanes,
                                 plan.runs.data(),
                                 plan.segments.data(),
                                 plan.in_step,
                                 plan.out_step,
                                 lists.entries,
                                 lists.starts,
                                 lists.taps};
        const ConvTile& tile = plan.tiles[item % n_tiles];
        const bool more = item + 1 < last && (item + 1) % n_tiles != 0;
        sums(lines, tile, more ? &tile + 1 : nullptr, cuts[piece], cuts[piece + 1]);
      }
    }
  });
}

template void conv_batch_last(const ConvImages&, const ConvImages&, const ConvWeight<float>&, const float*,
                              const float*, ConvActivation, const ConvAxis&, const ConvAxis&);
template void conv_batch_last(const ConvImages&, const ConvImages&, const ConvWeight<double>&, const double*,
                              const double*, ConvActivation, const ConvAxis&, const ConvAxis&);
template void conv_batch_last(const ConvImages&, const ConvImages&, const ConvWeight<Half>&, const Half*, const Half*,
                              ConvActivation, const ConvAxis&, const ConvAxis&);
template void conv_batch_last(const ConvImages&, const ConvImages&, const ConvWeight<Bfloat>&, const Bfloat*,
                              const Bfloat*, ConvActivation, const ConvAxis&, const ConvAxis&);

}  // namespace sparse_ops
