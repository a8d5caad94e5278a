// The sparse weight of a convolution sorted by kernel tap, so that one list serves every class of target pixels: what a
// class sees of a channel's list is a few runs of taps.
#pragma once

#include <vector>

#include "scratch.h"
#include "sparse_conv2d_geometry.h"
#include "sparse_conv2d_lanes.h"
#include "sparse_conv2d_weight.h"

namespace sparse_ops {

// Taps begin .. end - 1, which all pixels of a run see, but for the first and the last of them where those are left
// out.
struct ConvSegment {
  int32_t begin, end;
  bool without_first, without_last;
};

// Up to six target pixels of one image row: target pixels out, out + out_step, ..., and source pixels in, in + in_step,
// ... of tap (0, 0), which may lie outside of the image. They see the segments first .. last.
struct ConvRun {
  int32_t pixels, in, out, first, last;
};

// Runs of neighbouring pixels, worked on one after the other with all target channels; fetch, fetch_count: the source
// pixels that the tile before does not read, as far as they follow each other.
struct ConvTile {
  int32_t first, last, fetch, fetch_count;
};

struct ConvTapRuns {
  std::vector<ConvRun> runs;
  std::vector<ConvSegment> segments;
  std::vector<ConvTile> tiles;
  int32_t in_step, out_step;
};

// The target pixels of whole images in runs of at most `most`, and tiles of which the source lines, 64 bytes each in as
// many channels, stay in the L2 cache where possible.
ConvTapRuns conv_tap_runs(const ConvAxis& h, const ConvAxis& w, int64_t source_channels, int most);

// Row r (target channel) holds entries starts[r * taps] .. starts[(r + 1) * taps], tap t from starts[r * taps + t] on.
// An entry's offset, in elements, is that of its source channel and tap from a run's `in` pixels; a pixel is `channels`
// lines of `pitch` elements. Lives in the calling thread's scratch memory.
template <typename A>
struct ConvTapLists {
  int64_t taps;
  int32_t* starts;
  ConvEntry<A>* entries;

  template <typename T>
  ConvTapLists(const ConvWeight<T>& weight, const ConvAxis& h, const ConvAxis& w, int64_t channels, int64_t pitch)
      : taps(weight.taps) {
    const int64_t rows = weight.rows * weight.groups, total = weight.count();
    starts = static_cast<int32_t*>(scratch<kConvStarts>((rows * taps + 1) * sizeof(int32_t)));
    entries = static_cast<ConvEntry<A>*>(scratch<kConvEntries>((total + 1) * sizeof(ConvEntry<A>)));
    std::vector<int64_t> first(taps);
    for (int64_t tap = 0; tap < taps; ++tap) {
      first[tap] = (h.delta(tap / w.kernel) * w.source + w.delta(tap % w.kernel)) * channels * pitch;
      STD_TORCH_CHECK(std::abs(first[tap]) + channels * pitch < int64_t{1} << 31, "sparse_conv2d: a window over ",
                      channels, " channels of images of ", w.source, " columns, ", pitch,
                      " of them, reaches over more than 2^31 elements");
    }
    const int64_t grain = std::max<int64_t>(1, 8192 * rows / std::max<int64_t>(1, total));
    parallel(0, rows, grain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        int32_t* count = starts + row * taps + 1;
        std::fill_n(count, taps, 0);
        weight.visit(row, [&](int64_t, int64_t tap, A) { ++count[tap]; });
      }
    });
    starts[0] = 0;
    for (int64_t i = 1; i <= rows * taps; ++i) starts[i] += starts[i - 1];
    parallel(0, rows, grain, [&](int64_t begin, int64_t end) {
      std::vector<int32_t> next(taps);
      for (int64_t row = begin; row < end; ++row) {
        std::copy_n(starts + row * taps, taps, next.begin());
        weight.visit(row, [&](int64_t channel, int64_t tap, A value) {
          entries[next[tap]++] = {static_cast<int32_t>(first[tap] + channel * pitch), value};
        });
      }
    });
  }
};

}  // namespace sparse_ops
