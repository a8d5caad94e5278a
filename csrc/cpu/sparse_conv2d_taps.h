// The sparse weight of a convolution sorted by kernel tap, so that one list serves every class of target pixels: what a
// class sees of a channel's list is a few runs of taps.
#pragma once

#include <vector>

#include "scratch.h"
#include "sparse_conv2d_geometry.h"
#include "sparse_conv2d_lanes.h"
#include "sparse_conv2d_weight.h"

namespace sparse_ops {

// Taps begin .. end - 1.
struct ConvSegment {
  int32_t begin, end;
};

// Target pixels in blocks, and the segments that each class of them sees: segments[first[cls]] .. segments[first[cls + 1]].
struct ConvTapBlocks {
  std::vector<ConvBlock> blocks;
  std::vector<ConvSegment> segments;
  std::vector<int32_t> first;
};

// Of whole images; a block's `in` lines count from the source coordinate that tap (0, 0) would read, which may lie
// outside of the image (and then be negative).
ConvTapBlocks conv_tap_blocks(const ConvAxis& h, const ConvAxis& w, int most);

// Row r (target channel) holds entries starts[r * taps] .. starts[(r + 1) * taps], tap t from starts[r * taps + t] on. An
// entry's offset, in lines, is that of its source channel and tap from a block's `in` lines. Lives in the calling
// thread's scratch memory.
template <typename A>
struct ConvTapLists {
  int64_t taps;
  int32_t* starts;
  ConvEntry<A>* entries;

  template <typename T>
  ConvTapLists(const ConvWeight<T>& weight, const ConvAxis& h, const ConvAxis& w) : taps(weight.taps) {
    const int64_t rows = weight.rows * weight.groups, total = weight.count(), plane = h.source * w.source;
    starts = static_cast<int32_t*>(scratch<kConvStarts>((rows * taps + 1) * sizeof(int32_t)));
    entries = static_cast<ConvEntry<A>*>(scratch<kConvEntries>((total + 1) * sizeof(ConvEntry<A>)));
    std::vector<int64_t> lines(taps);
    for (int64_t tap = 0; tap < taps; ++tap)
      lines[tap] = h.delta(tap / w.kernel) * w.source + w.delta(tap % w.kernel);
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
          entries[next[tap]++] = {static_cast<int32_t>(channel * plane + lines[tap]), value};
        });
      }
    });
  }
};

}  // namespace sparse_ops
