// Planes of pixels: how tiles are cut and filled.
#include "sparse_conv2d_planes.h"

#include <algorithm>
#include <cstring>

#include "elements.h"

#define SPARSE_OPS_BODY "cpu/sparse_conv2d_planes_body.h"
#include "../foreach_isa.h"

namespace sparse_ops {

namespace {

int64_t rounded_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// From one row to the next, of targets and of what they see beyond the row's ends, which is zero.
int64_t pitch_of(const PlaneAxis& w) {
  return std::max(w.coordinates - std::min<int64_t>(w.low, 0), w.target + std::max<int64_t>(w.high, 0));
}

// Contiguous images: each row is one run of memory. The zeros between rows stand there already; rows outside of the
// image, which other tiles have inside, are cleared.
template <typename T>
void fill_contiguous(const ConvImages& x, const PlaneTiling& t, const PlaneTile& tile, Accumulator<T>* slab) {
  using A = Accumulator<T>;
  const auto copy = SPARSE_OPS_DISPATCH(stage<T>);
  const auto copy_phase = SPARSE_OPS_DISPATCH(stage_phase<T>);
  const int64_t seen = tile.rows + t.h.high - t.h.low, first = tile.row + t.h.low;  // first: the plane's first row
  const int64_t begin = std::clamp<int64_t>(-first, 0, seen), end = std::clamp(t.h.coordinates - first, begin, seen);
  for (int64_t c = 0; c < x.channels; ++c)
    for (int64_t g = 0; g < tile.images; ++g) {
      A* to = slab + c * t.plane + t.lead + g * t.image;
      const T* from = static_cast<const T*>(x.data) + ((tile.first + g) * x.channels + c) * x.rows * x.cols;
      if (t.bands > 1) {
        std::memset(to, 0, begin * t.pitch * sizeof(A));
        std::memset(to + end * t.pitch, 0, (seen - end) * t.pitch * sizeof(A));
      }
      if (begin >= end || t.w.coordinates <= 0) continue;
      if (t.h.stride == 1 && t.w.stride == 1) {
        copy(from + (first + begin) * x.cols, x.cols, end - begin, t.w.coordinates, x.rows * x.cols,
             to + begin * t.pitch, t.pitch);
        continue;
      }
      for (int64_t r = begin; r < end; ++r)
        copy_phase(from + ((first + r) * t.h.stride + t.h.phase) * x.cols + t.w.phase, t.w.stride, t.w.coordinates,
                   to + r * t.pitch);
    }
}

// Images with their channels innermost: as many pixels as a line has lanes are transposed together.
template <typename T>
void fill_channels_last(const ConvImages& x, const PlaneTiling& t, const PlaneTile& tile, const T* zeros,
                        Accumulator<T>* slab) {
  constexpr int kLanes = 64 / sizeof(Accumulator<T>);
  const auto gather_all = SPARSE_OPS_DISPATCH(gather<T>);
  const int64_t seen = tile.rows + t.h.high - t.h.low, first = tile.row + t.h.low;
  for (int64_t g = 0; g < tile.images; ++g) {
    const T* image = static_cast<const T*>(x.data) + (tile.first + g) * x.rows * x.cols * x.channels;
    const T* src[kLanes];
    int lane = 0;
    Accumulator<T>* to = slab + t.lead + g * t.image;
    for (int64_t row = first; row < first + seen; ++row) {
      const bool inside = row >= 0 && row < t.h.coordinates;
      const T* line = image + ((row * t.h.stride + t.h.phase) * x.cols + t.w.phase) * x.channels;
      for (int64_t col = 0; col < t.pitch; ++col) {
        src[lane++] = inside && col < t.w.coordinates ? line + col * t.w.stride * x.channels : zeros;
        if (lane < kLanes) continue;
        gather_all(src, x.channels, to, t.plane);
        to += kLanes;
        lane = 0;
      }
    }
    if (lane == 0) continue;
    while (lane < kLanes) src[lane++] = zeros;
    gather_all(src, x.channels, to, t.plane);
  }
}

}  // namespace

PlaneAxis::PlaneAxis(const ConvAxis& axis)
    : target(axis.target), stride(axis.transposed ? 1 : axis.stride), phase(0), one_phase(true) {
  for (int64_t k = 0; k < axis.kernel; ++k) {
    const int64_t d = axis.transposed ? axis.padding - k * axis.dilation : k * axis.dilation - axis.padding;
    shift.push_back(floor_div(d, stride));
    const int64_t rest = d - shift.back() * stride;
    if (k == 0) phase = rest;
    one_phase &= rest == phase;
  }
  one_phase &= !axis.transposed || axis.stride == 1;
  low = *std::min_element(shift.begin(), shift.end());
  high = *std::max_element(shift.begin(), shift.end());
  coordinates = std::clamp<int64_t>(ceil_div(axis.source - phase, stride), 0, std::max<int64_t>(0, target + high));
}

PlaneTiling::PlaneTiling(const ConvAxis& rows_axis, const ConvAxis& cols_axis, int64_t count, int64_t channels,
                         int64_t lanes_, int64_t size)
    : h(rows_axis), w(cols_axis), lanes(lanes_), pitch(pitch_of(w)), rows(h.target), bands(1) {
  // With what streams by, the planes stay in L2: 1 MiB on processors with AVX-512, 512 KiB on Zen 2 and 3.
  const int64_t budget = (isa() == Isa::avx2 ? 448 : 640) << 10;
  const int64_t line = channels * size, span = h.high - h.low;
  image = rounded_up(std::max(h.coordinates - h.low, h.target + std::max<int64_t>(h.high, 0)) * pitch, lanes);
  lead = rounded_up(std::max<int64_t>(0, -w.low), lanes);
  images = std::min(count, std::max<int64_t>(1, budget / (image * line)));
  if ((h.target + span) * pitch * line > budget) {
    const int64_t fit = budget / (pitch * line) - span;
    rows = ceil_div(h.target, ceil_div(h.target, std::max<int64_t>(fit, 1)));
    bands = ceil_div(h.target, rows);
  }
  plane = rounded_up(lead + (images - 1) * image + (rows + span) * pitch + lanes, lanes);
  joined = bands == 1 && line_count(rows) * lanes == image;
}

bool PlaneTiling::serves(int64_t channels, int64_t size) const {
  constexpr int64_t kMost = 1 << 20;
  return h.one_phase && w.one_phase && channels * plane * size <= kMost &&
         5 * rows * w.target >= 3 * lanes * line_count(rows);
}

int64_t PlaneTiling::tiles(int64_t count) const { return bands > 1 ? count * bands : ceil_div(count, images); }

PlaneTile PlaneTiling::tile(int64_t number, int64_t count) const {
  const int64_t row = number % bands * rows;
  if (bands > 1) return {number / bands, 1, row, std::min(rows, h.target - row)};
  return {number * images, std::min(images, count - number * images), 0, rows};
}

int64_t PlaneTiling::together(int64_t apart) const {
  constexpr int64_t kMost = 16, kNumbers = INT32_MAX;  // sums of a run stay in L1 or L2; a line's `at` has 32 bits
  return joined ? std::clamp<int64_t>(kNumbers / apart, 1, std::min(images, kMost)) : 1;
}

int64_t PlaneTiling::line_count(int64_t n) const { return ceil_div((n - 1) * pitch + w.target, lanes); }

std::vector<ConvLine> PlaneTiling::lines(int64_t n, int64_t several, int64_t apart) const {
  std::vector<ConvLine> made;
  const int64_t count = line_count(n);
  for (int64_t g = 0; g < several; ++g) {
    int64_t at = g * apart, row = 0, col = 0;
    const int64_t end = at + n * w.target;
    for (int64_t i = 0; i < count; ++i) {
      ConvLine line{static_cast<int32_t>(at), static_cast<int32_t>(end - at), 0, 0};
      for (int64_t l = 0; l < lanes; ++l) {
        if (col < w.target && row < n) {
          line.mask = static_cast<uint16_t>(line.mask | 1u << l);
          ++line.count;
        }
        if (++col == pitch) {
          col = 0;
          ++row;
        }
      }
      at += line.count;
      made.push_back(line);
    }
  }
  return made;
}

int64_t PlaneTiling::distance(int64_t tap) const {
  const auto width = static_cast<int64_t>(w.shift.size());
  return (h.shift[tap / width] - h.low) * pitch + w.shift[tap % width];
}

template <typename T>
void fill_planes(const ConvImages& x, const PlaneTiling& tiling, const PlaneTile& tile, const T* zeros, void* planes) {
  auto* slab = static_cast<Accumulator<T>*>(planes);
  if (x.layout == ConvLayout::channels_last)
    fill_channels_last<T>(x, tiling, tile, zeros, slab);
  else
    fill_contiguous<T>(x, tiling, tile, slab);
}

template <typename T>
void read_runs(const ConvImages& y, const PlaneTile& tile, int64_t r, int64_t n, int64_t apart, int64_t pitch,
               void* runs) {
  constexpr int kLanes = 64 / sizeof(Accumulator<T>);
  auto* out = static_cast<Accumulator<T>*>(runs);
  const auto copy = SPARSE_OPS_DISPATCH(stage<T>);
  const auto gather_all = SPARSE_OPS_DISPATCH(gather<T>);
  const int64_t pixels = tile.rows * y.cols, area = y.rows * y.cols, first = tile.row * y.cols;
  const T* from = static_cast<const T*>(y.data);
  for (int64_t i = tile.first; i < tile.first + tile.images; ++i, out += apart) {
    if (y.layout != ConvLayout::channels_last) {
      for (int64_t k = 0; k < n; ++k)
        copy(from + (i * y.channels + r + k) * area + first, 0, 1, pixels, 0, out + k * pitch, 0);
      continue;
    }
    const T* src[kLanes];
    for (int64_t q = 0; q < pixels; q += kLanes) {
      for (int l = 0; l < kLanes; ++l)
        src[l] = from + (i * area + first + std::min(q + l, pixels - 1)) * y.channels + r;
      gather_all(src, n, out + q, pitch);
    }
  }
}

template <typename T>
void write_runs(const void* runs, int64_t apart, int64_t pitch, bool past, const ConvImages& y, const PlaneTile& tile,
                int64_t r, int64_t n) {
  using A = Accumulator<T>;
  constexpr int kLanes = 64 / sizeof(A);
  const auto* out = static_cast<const A*>(runs);
  const auto narrow_all = past ? SPARSE_OPS_DISPATCH(stream_run<T>) : SPARSE_OPS_DISPATCH(narrow_run<T>);
  const auto scatter_all = SPARSE_OPS_DISPATCH(scatter<T>);
  const auto past_all = SPARSE_OPS_DISPATCH(scatter_past);
  const int64_t pixels = tile.rows * y.cols, area = y.rows * y.cols, first = tile.row * y.cols;
  T* to = static_cast<T*>(y.data);
  // of images with their channels innermost a line of the target is whole where all channels of a register are written
  past &= sizeof(T) == sizeof(float) && n == kLanes && y.channels % kLanes == 0 && r % kLanes == 0 &&
          reinterpret_cast<uintptr_t>(to) % 64 == 0;
  T sink[kLanes];
  for (int64_t i = tile.first; i < tile.first + tile.images; ++i, out += apart) {
    if (y.layout != ConvLayout::channels_last) {
      for (int64_t k = 0; k < n; ++k)
        narrow_all(out + k * pitch, pixels, to + (i * y.channels + r + k) * area + first);
      continue;
    }
    T* dst[kLanes];
    for (int64_t q = 0; q < pixels; q += kLanes) {
      for (int l = 0; l < kLanes; ++l)
        dst[l] = q + l < pixels ? to + (i * area + first + q + l) * y.channels + r : sink;
      if (past && q + kLanes <= pixels)
        past_all(reinterpret_cast<const float*>(out + q), pitch, reinterpret_cast<float* const*>(dst));
      else
        scatter_all(out + q, pitch, n, dst);
    }
  }
}

void written() { SPARSE_OPS_DISPATCH(streamed)(); }

#define SPARSE_OPS_PLANES(T)                                                                                      \
  template void fill_planes<T>(const ConvImages&, const PlaneTiling&, const PlaneTile&, const T*, void*);        \
  template void read_runs<T>(const ConvImages&, const PlaneTile&, int64_t, int64_t, int64_t, int64_t, void*);     \
  template void write_runs<T>(const void*, int64_t, int64_t, bool, const ConvImages&, const PlaneTile&, int64_t, \
                              int64_t);
SPARSE_OPS_PLANES(float)
SPARSE_OPS_PLANES(double)
SPARSE_OPS_PLANES(Half)
SPARSE_OPS_PLANES(Bfloat)

}  // namespace sparse_ops
