// Convolution of images as users hold them, with neighbouring pixels in the lanes of a register.
#include "sparse_conv2d_pixels.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "elements.h"
#include "scratch.h"

#define SPARSE_OPS_BODY "cpu/sparse_conv2d_pixels_body.h"
#include "../foreach_isa.h"

namespace sparse_ops {

namespace {

// Targets of more bytes are written past the caches.
template <typename T>
bool past_caches(const ConvImages& target) {
  constexpr int64_t kCaches = 6 << 20;
  return target.images * target.channels * target.rows * target.cols * static_cast<int64_t>(sizeof(T)) > kCaches;
}

// Per target channel the entries starts[row] .. starts[row + 1], in the weight's order.
template <typename A>
struct PixelLists {
  int64_t* starts;
  ConvEntry<A>* entries;

  template <typename T>
  PixelLists(const ConvWeight<T>& weight, const PlaneTiling& tiling) {
    const int64_t rows = weight.rows * weight.groups, total = weight.count();
    starts = static_cast<int64_t*>(scratch<kConvStarts>((rows + 1) * sizeof(int64_t)));
    entries = static_cast<ConvEntry<A>*>(scratch<kConvEntries>((total + 1) * sizeof(ConvEntry<A>)));
    std::vector<int64_t> distance(weight.taps);
    for (int64_t tap = 0; tap < weight.taps; ++tap) distance[tap] = tiling.distance(tap);
    const int64_t grain = std::max<int64_t>(1, 8192 * rows / std::max<int64_t>(1, total));
    starts[0] = 0;
    for (int64_t row = 0; row < rows; ++row) {
      int64_t n = 0;
      if (weight.transposed && weight.groups == 1)
        n = weight.offsets[(row + 1) * weight.taps] - weight.offsets[row * weight.taps];
      else if (weight.transposed)
        weight.visit(row, [&](int64_t, int64_t, A) { ++n; });
      else
        n = weight.offsets[row + 1] - weight.offsets[row];
      starts[row + 1] = starts[row] + n;
    }
    parallel(0, rows, grain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        ConvEntry<A>* next = entries + starts[row];
        weight.visit(row, [&](int64_t channel, int64_t tap, A value) {
          *next++ = {static_cast<int32_t>(channel * tiling.plane + distance[tap]), value};
        });
      }
    });
  }
};

}  // namespace

// Against bands of images in lanes (sparse_conv2d_lanes.h), one thread, ResNet-50's layers at 90 to 98 % zeros:
// contiguous images take 0.7 to 1.1 of their time, and half with one image of 7 x 7. Images with their channels
// innermost are transposed either way, and lines at any distance are loaded less quickly than aligned ones: there it
// pays where the result goes past the caches (0.8), for few small images (0.5 to 0.9) and for 1x1 with a stride (0.45).
// Where AVX2 loads half a line at once, which crosses into the next one half as often, 3x3 windows take 0.75 to 0.95
// (Zen 3).
template <typename T>
bool conv_pixels_suit(const ConvImages& source, const ConvImages& target, const ConvAxis& h, const ConvAxis& w) {
  using A = Accumulator<T>;
  constexpr int64_t kLanes = 64 / sizeof(A), kSmall = 256;
  if (source.channels == 0) return false;
  const PlaneTiling t(h, w, target.images, source.channels, kLanes, sizeof(A));
  if (!t.serves(source.channels, sizeof(A))) return false;
  if (source.layout == ConvLayout::contiguous || t.h.stride * t.w.stride > 1) return true;
  const bool few = target.rows * target.cols <= kSmall && 4 * target.images < 3 * kLanes;
  if (isa() == Isa::avx2 && h.kernel * w.kernel > 1) return true;
  return few || (sizeof(T) == sizeof(float) && past_caches<T>(target));
}

template <typename T>
void conv_pixels(const ConvImages& source, const ConvImages& target, const ConvWeight<T>& weight, const T* bias,
                 const ConvImages* addend, ConvActivation activation, const ConvAxis& h, const ConvAxis& w) {
  using A = Accumulator<T>;
  constexpr int kLanes = 64 / sizeof(A);
  const PlaneTiling t(h, w, target.images, source.channels, kLanes, sizeof(A));
  const PixelLists<A> lists(weight, t);
  const int64_t rows = target.channels, area = target.rows * target.cols;
  const bool last = target.layout == ConvLayout::channels_last, wide = sizeof(T) == sizeof(A);
  const bool past = wide && past_caches<T>(target);
  const bool direct = !last && wide && !past;  // sums go where they belong, not by way of `out`
  // Lines of several images follow each other where they are joined; else each image is a run of its own.
  const int64_t run = t.rows * t.w.target, last_rows = t.h.target - (t.bands - 1) * t.rows;
  const int64_t apart = direct ? rows * area : (run + kLanes - 1) / kLanes * kLanes, together = t.together(apart);
  const std::vector<ConvLine> lines = t.lines(t.rows, together, apart), last_lines = t.lines(last_rows, 1, apart);

  // A tile is worked on by several threads only where there are few tiles: each of them packs it for itself.
  const int64_t tiles = t.tiles(target.images), threads = torch::stable::get_num_threads();
  const int64_t pieces = threads == 1 || tiles >= 4 * threads
                             ? 1
                             : std::min((4 * threads + tiles - 1) / tiles, (rows + kLanes - 1) / kLanes);
  std::vector<int64_t> costs(rows + 1);
  for (int64_t r = 0; r <= rows; ++r) costs[r] = lists.starts[r] + 4 * r;
  const int64_t step = last ? kLanes : 1;  // target channels summed before they are written
  auto cuts = conv_cuts(rows, pieces, costs);
  for (int64_t p = 1; p < pieces; ++p) cuts[p] -= cuts[p] % step;
  const int64_t pitch = together * apart;
  const auto sum = SPARSE_OPS_DISPATCH(sum_run<A>);

  parallel(0, tiles * pieces, 1, [&](int64_t begin, int64_t end) {
    const int64_t bytes = source.channels * t.plane * static_cast<int64_t>(sizeof(A));
    A* planes = static_cast<A*>(scratch<kConvSlab>(bytes));
    A* out = static_cast<A*>(scratch<kConvOut>(direct ? 0 : 2 * step * pitch * sizeof(A)));
    A* added = out + step * pitch;
    T* zeros = static_cast<T*>(scratch<kConvRow>(source.channels * sizeof(T)));
    std::memset(zeros, 0, source.channels * sizeof(T));
    std::memset(planes, 0, bytes);
    int64_t filled = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t number = item / pieces;
      const PlaneTile tile = t.tile(number, target.images);
      if (number != filled) fill_planes(source, t, tile, zeros, planes);
      filled = number;
      const ConvLine* mine = tile.rows == t.rows ? lines.data() : last_lines.data();
      const int64_t several = std::min(together, tile.images), count = t.line_count(tile.rows);
      for (int64_t r = cuts[item % pieces], until = cuts[item % pieces + 1]; r < until; r += step) {
        const int64_t n = std::min(step, until - r);
        for (int64_t g = 0; g < tile.images; g += several) {
          const PlaneTile part{tile.first + g, std::min(several, tile.images - g), tile.row, tile.rows};
          const int64_t at = (part.first * rows + r) * area + part.row * target.cols;  // of a direct run
          if (addend != nullptr && !direct) read_runs<T>(*addend, part, r, n, apart, pitch, added);
          for (int64_t k = 0; k < n; ++k) {
            const A* add = added + k * pitch;
            if (addend == nullptr || direct)
              add = addend == nullptr ? nullptr : static_cast<const A*>(addend->data) + at;
            sum(planes + t.lead + g * t.image, mine, part.images * count, lists.entries + lists.starts[r + k],
                lists.starts[r + k + 1] - lists.starts[r + k], bias == nullptr ? A{} : A{widen(bias[r + k])}, add,
                activation, direct ? static_cast<A*>(target.data) + at : out + k * pitch);
          }
          if (!direct) write_runs<T>(out, apart, pitch, past, target, part, r, n);
        }
      }
    }
    if (past) written();
  });
}

#define SPARSE_OPS_CONV_PIXELS(T)                                                                                     \
  template bool conv_pixels_suit<T>(const ConvImages&, const ConvImages&, const ConvAxis&, const ConvAxis&);          \
  template void conv_pixels<T>(const ConvImages&, const ConvImages&, const ConvWeight<T>&, const T*,                  \
                               const ConvImages*, ConvActivation, const ConvAxis&, const ConvAxis&);
SPARSE_OPS_CONV_PIXELS(float)
SPARSE_OPS_CONV_PIXELS(double)
SPARSE_OPS_CONV_PIXELS(Half)
SPARSE_OPS_CONV_PIXELS(Bfloat)

}  // namespace sparse_ops
