// The weight gradient of images whose batch lies innermost in memory: dot products of lines of x and dy, of all images
// of a pixel and channel each, which are read where they lie.
#include "sparse_conv2d_weight_grad_batch_last.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "elements.h"
#include "scratch.h"
#include "sparse_conv2d_taps.h"
#include "sparse_conv2d_weight.h"

namespace sparse_ops {

// What is multiplied, and where the sums go. Steps are in elements.
struct ConvDots {
  const void *x, *dy;
  int64_t x_pixel, dy_pixel, pitch;  // from pixel to pixel, from line to line
  int64_t in_step, out_step;         // pixels of a run
  int64_t below;                     // pixels from a run's first source pixel to those of the last row of taps
  bool pairs;  // bfloat16 in products of two, which take subnormal numbers for 0
  const ConvSegment* segments;
  const int32_t* starts;
  int64_t taps;
  const int64_t* offsets;
  double* sums;
};

}  // namespace sparse_ops

#define SPARSE_OPS_BODY "cpu/sparse_conv2d_weight_grad_batch_last_body.h"
#include "../foreach_isa.h"

namespace sparse_ops {

namespace {

// The entries of each target channel by tap and channel: entry e is value index[e] of the pattern, and its source line
// lies offsets[e] elements from a run's first.
struct Entries {
  std::vector<int32_t> starts, index;
  std::vector<int64_t> offsets;

  // pixel: elements from pixel to pixel, pitch: from line to line.
  Entries(const int32_t* row_offsets, const int32_t* columns, int64_t rows, int64_t groups, int64_t channels,
          const ConvAxis& h, const ConvAxis& w, int64_t pixel, int64_t pitch) {
    const int64_t taps = h.kernel * w.kernel, nnz = row_offsets[rows];
    starts.assign(rows * taps + 1, 0);
    index.resize(nnz);
    offsets.resize(nnz);
    std::vector<int64_t> first(taps);
    for (int64_t tap = 0; tap < taps; ++tap)
      first[tap] = (h.delta(tap / w.kernel) * w.source + w.delta(tap % w.kernel)) * pixel;
    std::vector<int32_t> next(taps);
    for (int64_t row = 0; row < rows; ++row) {
      int32_t* start = starts.data() + row * taps;
      for (int64_t i = row_offsets[row]; i < row_offsets[row + 1]; ++i) ++start[columns[i] % taps + 1];
      for (int64_t tap = 0; tap < taps; ++tap) start[tap + 1] += start[tap];
      std::copy_n(start, taps, next.begin());
      const int64_t group = row / (rows / groups) * (channels / groups);
      for (int64_t i = row_offsets[row]; i < row_offsets[row + 1]; ++i) {
        const int64_t c = columns[i] / taps, tap = columns[i] - c * taps, e = next[tap]++;
        index[e] = static_cast<int32_t>(i);
        offsets[e] = first[tap] + (group + c) * pitch;
      }
    }
  }
};

// Sums over units, in their order, within a fixed number of segments, and over these in their order: the same bits for
// any number of threads. Several threads share a segment by target channels. f(first unit, last unit, first channel,
// last channel, sums) adds to the sums of the entries.
template <typename T, typename F>
void sum_segments(const Entries& entries, int64_t rows, int64_t taps, int64_t units, int64_t segments, T* dvalues,
                  const F& f) {
  const auto nnz = static_cast<int64_t>(entries.index.size());
  segments = std::min(units, segments);
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t pieces = threads == 1 || segments == 0 ? 1 : std::min((2 * threads + segments - 1) / segments, rows);
  std::vector<int64_t> costs(rows + 1);
  for (int64_t r = 0; r <= rows; ++r) costs[r] = entries.starts[r * taps] + r;
  const auto cuts = conv_cuts(rows, segments % threads == 0 ? 1 : pieces, costs);
  const auto n_pieces = static_cast<int64_t>(cuts.size()) - 1;
  auto* partial = static_cast<double*>(scratch<kConvPartial>(std::max<int64_t>(1, segments * nnz) * sizeof(double)));
  parallel(0, segments * n_pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t segment = item / n_pieces, piece = item % n_pieces, first = cuts[piece], last = cuts[piece + 1];
      double* sums = partial + segment * nnz;
      std::fill(sums + entries.starts[first * taps], sums + entries.starts[last * taps], 0.0);
      if (first < last) f(segment * units / segments, (segment + 1) * units / segments, first, last, sums);
    }
  });
  parallel(0, nnz, 8192, [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) {
      double sum = 0;
      for (int64_t s = 0; s < segments; ++s) sum += partial[s * nnz + e];
      narrow(static_cast<Accumulator<T>>(sum), dvalues + entries.index[e]);
    }
  });
}

uint32_t first_lanes(int64_t n) { return n >= 16 ? 0xffff : (1u << n) - 1; }

// How many segments: sums take 8 bytes an entry in each.
int64_t segments_of(int64_t nnz, int64_t most) {
  constexpr int64_t kBytes = 8 << 20;
  int64_t segments = most;
  while (segments > 2 && segments * nnz * 8 > kBytes) segments /= 2;
  return segments;
}

}  // namespace

template <typename T>
void conv_weight_grad_batch_last(const ConvImages& x, const ConvImages& dy, const int32_t* row_offsets,
                                 const int32_t* columns, T* dvalues, int64_t groups, const ConvAxis& h,
                                 const ConvAxis& w) {
  constexpr int64_t kLanes = 64 / sizeof(Accumulator<T>);
  if (row_offsets[dy.channels] == 0) return;
  const int64_t rows = dy.channels, images = x.images, taps = h.kernel * w.kernel;
  const ConvTapRuns plan = conv_tap_runs(h, w, x.channels, SPARSE_OPS_DISPATCH(most_dot_pixels<T>)());
  const Entries entries(row_offsets, columns, rows, groups, x.channels, h, w, x.channels * images, images);
  const auto runs = static_cast<int64_t>(plan.runs.size());
  const int64_t panels = images == 0 ? 0 : (images + kLanes - 1) / kLanes;
  const auto dot = SPARSE_OPS_DISPATCH(dot_runs<T>);
  sum_segments(entries, rows, taps, panels * runs, segments_of(row_offsets[rows], 8), dvalues,
               [&](int64_t begin, int64_t end, int64_t first, int64_t last, double* sums) {
                 for (int64_t unit = begin; unit < end;) {
                   const int64_t lane = unit / runs * kLanes, until = std::min(end, (unit / runs + 1) * runs);
                   const ConvDots dots{static_cast<const T*>(x.data) + lane,
                                       static_cast<const T*>(dy.data) + lane,
                                       x.channels * images,
                                       rows * images,
                                       images,
                                       plan.in_step,
                                       plan.out_step,
                                       h.delta(h.kernel - 1) * w.source,
                                       isa() == Isa::avx512_bf16,
                                       plan.segments.data(),
                                       entries.starts.data(),
                                       taps,
                                       entries.offsets.data(),
                                       sums};
                   const ConvRun* from = plan.runs.data() + unit % runs;
                   dot(dots, from, from + (until - unit), first_lanes(std::min(kLanes, images - lane)), first, last);
                   unit = until;
                 }
               });
}

template void conv_weight_grad_batch_last(const ConvImages&, const ConvImages&, const int32_t*, const int32_t*, float*,
                                          int64_t, const ConvAxis&, const ConvAxis&);
template void conv_weight_grad_batch_last(const ConvImages&, const ConvImages&, const int32_t*, const int32_t*, double*,
                                          int64_t, const ConvAxis&, const ConvAxis&);
template void conv_weight_grad_batch_last(const ConvImages&, const ConvImages&, const int32_t*, const int32_t*, Half*,
                                          int64_t, const ConvAxis&, const ConvAxis&);
template void conv_weight_grad_batch_last(const ConvImages&, const ConvImages&, const int32_t*, const int32_t*, Bfloat*,
                                          int64_t, const ConvAxis&, const ConvAxis&);

}  // namespace sparse_ops
