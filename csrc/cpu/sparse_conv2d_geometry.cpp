// Where the outputs of a sparse convolution find their inputs: classes of output coordinates, and tiles.
#include "sparse_conv2d_geometry.h"

#include <algorithm>

namespace sparse_ops {

static int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t ConvAxis::origin(int64_t t0) const {
  return transposed ? t0 / stride + floor_div(padding - (kernel - 1) * dilation, stride) : t0 * stride - padding;
}

int64_t ConvAxis::extent(int64_t n) const {
  if (!transposed) return (n - 1) * stride + (kernel - 1) * dilation + 1;
  return floor_div(n - 1 + padding, stride) - floor_div(padding - (kernel - 1) * dilation, stride) + 1;
}

int64_t ConvAxis::base(int64_t t) const { return transposed ? floor_div(t + padding, stride) : t * stride - padding; }

int64_t ConvAxis::delta(int64_t k) const { return transposed ? -floor_div(k * dilation, stride) : k * dilation; }

// The source coordinate that tap k of target coordinate t reads, counted from the slab's first; -1 where it reads none.
static int64_t source_of(const ConvAxis& axis, int64_t t, int64_t k, bool whole) {
  const int64_t first = whole ? 0 : axis.origin(0);
  int64_t s = t * axis.stride - axis.padding + k * axis.dilation;
  if (axis.transposed) {
    const int64_t phase = t + axis.padding - k * axis.dilation;
    s = floor_div(phase, axis.stride);
    if (s * axis.stride != phase) return -1;
  }
  if (whole && (s < 0 || s >= axis.source)) return -1;
  return s - first;
}

bool ConvAxis::sees(int64_t t, int64_t k) const { return source_of(*this, t, k, true) >= 0; }

std::vector<ConvClass> conv_classes(const ConvAxis& axis, int64_t n, bool whole) {
  std::vector<ConvClass> classes;
  std::vector<int32_t> offset(axis.kernel);
  for (int64_t t = 0; t < n; ++t) {
    int64_t base = 0;
    bool seen = false;
    for (int64_t k = 0; k < axis.kernel; ++k) {
      const int64_t s = source_of(axis, t, k, whole);
      if (s >= 0 && (!seen || s < base)) base = s;
      seen |= s >= 0;
    }
    for (int64_t k = 0; k < axis.kernel; ++k) {
      const int64_t s = source_of(axis, t, k, whole);
      offset[k] = s < 0 ? -1 : static_cast<int32_t>(s - base);
    }
    auto at = std::find_if(classes.begin(), classes.end(), [&](const ConvClass& c) { return c.offset == offset; });
    if (at == classes.end()) at = classes.insert(at, ConvClass{{}, {}, offset});
    at->target.push_back(static_cast<int32_t>(t));
    at->base.push_back(static_cast<int32_t>(base));
  }
  return classes;
}

// How many (target coordinate, tap) pairs of the first n coordinates read a source coordinate; n is a multiple of the
// stride where the axis is transposed and the slab padded.
static int64_t pairs(const ConvAxis& axis, int64_t n, bool whole) {
  if (!whole) return n * axis.kernel / (axis.transposed ? axis.stride : 1);
  int64_t count = 0;
  for (int64_t t = 0; t < n; ++t)
    for (int64_t k = 0; k < axis.kernel; ++k) count += source_of(axis, t, k, true) >= 0;
  return count;
}

// Cycles that a tile costs on a Zen 4 core with 1 MiB of L2, fitted to the layers of ResNet-50 at 98 % zeros.
static double tile_cycles(const ConvTiling& t, const ConvAxis& h, const ConvAxis& w, int64_t source_channels,
                          int64_t target_channels, double values_per_channel, int64_t lanes, bool channels_last) {
  // 64 bytes from or to memory; the start of a run of pixels, in such lines; a transposed line; a list entry.
  constexpr double kLine = 20, kRun = 1.2, kTransposed = 5, kEntry = 3;
  constexpr int64_t kShared = 8;  // of fewer tiles two threads share one, and both pack it
  // Slabs of more bytes are written back, to the next cache, and to memory, which reads each line of them first.
  constexpr double kMostlyL2 = 2.5e6, kSpilled = 4, kCached = 8e6;
  const auto moved = [&](double channels, double rows, double cols, bool merged, bool sixteen) {
    const double lines = channels * rows * cols;
    double runs = merged ? channels * lanes : channels * rows * lanes;
    if (channels_last) runs = sixteen ? 0 : rows * cols * lanes;
    return lines * (kLine + kTransposed) + runs * kRun * kLine;
  };
  const double in = static_cast<double>(source_channels * t.source_rows * t.source_cols), slab = in * 64;
  const double sum = slab <= 1.1e6 ? 2.1 : slab <= 2.5e6 ? 2.7 : slab <= 4e6 ? 3.2 : slab <= 8e6 ? 5 : 12;
  const double seen = static_cast<double>(pairs(h, t.rows, t.whole) * pairs(w, t.cols, t.whole));
  const double sums = values_per_channel * target_channels * seen / static_cast<double>(h.kernel * w.kernel);
  const int64_t phases = h.transposed ? h.stride * w.stride : 1, pixels = ceil_div(t.rows * t.cols, phases);
  const double block = t.whole ? 5.0 : static_cast<double>(pixels) / static_cast<double>(ceil_div(pixels, 8));
  const int64_t cols = std::min(t.source_cols, w.source);
  double packed = t.whole && !channels_last ? in * (kLine + kTransposed)
                                            : moved(source_channels, t.source_rows, cols, false, false);
  if (!channels_last && !t.whole && cols == w.source)  // the next row follows in memory
    packed -= static_cast<double>(source_channels * (t.source_rows - 1) * lanes) * kRun * kLine / 2;
  packed += in * (slab > kCached ? 2 * kLine : slab > kMostlyL2 ? kSpilled : 0);
  if (t.tiles() < kShared) packed *= 1 + 1.0 / static_cast<double>(t.tiles());
  return sums * (sum + kEntry / block) + packed + moved(target_channels, t.rows, t.cols, t.cols == w.target, true);
}

ConvTiling conv_tiling(const ConvAxis& h, const ConvAxis& w, int64_t images, int64_t source_channels,
                       int64_t target_channels, double values_per_channel, int64_t lanes, bool channels_last) {
  constexpr int64_t kMostWholeTaps = 49, kMostPhases = 16;
  const auto cost = [&](const ConvTiling& t) {
    return t.tiles() * tile_cycles(t, h, w, source_channels, target_channels, values_per_channel, lanes, channels_last);
  };
  ConvTiling best{true, h.target, w.target, 1, 1, h.source, w.source, ceil_div(images, lanes)};
  double least = -1;
  if (h.kernel * w.kernel <= kMostWholeTaps && h.stride * w.stride <= kMostPhases) {
    if (source_channels * h.source * w.source * 64 <= (1 << 20) && images >= best.groups * lanes * 3 / 4) return best;
    least = cost(best);
  }
  const int64_t unit_h = h.transposed ? h.stride : 1, unit_w = w.transposed ? w.stride : 1;
  for (int64_t panels = 1, last_cols = 0; panels <= w.target; panels += panels / 8 + 1) {
    const int64_t cols = ceil_div(ceil_div(w.target, panels), unit_w) * unit_w;
    if (cols == last_cols) continue;
    last_cols = cols;
    for (int64_t bands = 1, last_rows = 0; bands <= h.target; bands += bands / 8 + 1) {
      const int64_t rows = ceil_div(ceil_div(h.target, bands), unit_h) * unit_h, n = ceil_div(h.target, rows);
      if (rows == last_rows) continue;
      last_rows = rows;
      const ConvTiling t{false,         rows, cols, n, ceil_div(w.target, cols), h.extent(rows), w.extent(cols),
                         ceil_div(images * n, lanes)};
      const double c = cost(t);
      if (least < 0 || c < least) {
        least = c;
        best = t;
      }
    }
  }
  return best;
}

std::vector<ConvBlock> conv_blocks(const std::vector<ConvClass>& rows, const std::vector<ConvClass>& columns,
                                   int64_t source_cols, int64_t target_cols, int most) {
  std::vector<ConvBlock> blocks;
  for (size_t i = 0; i < rows.size(); ++i)
    for (size_t j = 0; j < columns.size(); ++j) {
      const int64_t n = static_cast<int64_t>(rows[i].target.size() * columns[j].target.size());
      const int64_t count = ceil_div(n, most);
      for (int64_t b = 0; b < count; ++b) {
        ConvBlock block{};
        block.cls = static_cast<int32_t>(i * columns.size() + j);
        for (int64_t p = b * n / count; p < (b + 1) * n / count; ++p) {
          const int64_t r = p / columns[j].target.size(), c = p % columns[j].target.size();
          block.in[block.pixels] = static_cast<int32_t>(rows[i].base[r] * source_cols + columns[j].base[c]);
          block.out[block.pixels++] = static_cast<int32_t>(rows[i].target[r] * target_cols + columns[j].target[c]);
        }
        blocks.push_back(block);
      }
    }
  return blocks;
}

}  // namespace sparse_ops
