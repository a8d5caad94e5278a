// Tiles of images in lanes: packing, unpacking and the buffers in between.
#include "sparse_conv2d_lanes.h"

#include <algorithm>

#include "elements.h"
#include "scratch.h"

#define SPARSE_OPS_BODY "cpu/sparse_conv2d_lanes_body.h"
#include "../foreach_isa.h"

namespace sparse_ops {

namespace {

// Per lane: where its image begins (nullptr for an empty lane) and the image row of the window's first row.
template <typename T>
struct Lanes {
  static constexpr int kCount = 64 / sizeof(Accumulator<T>);
  T* image[kCount];
  int64_t row[kCount];
  int used = 0;

  Lanes(const ConvImages& x, const ConvWindow& w) {
    for (int l = 0; l < kCount; ++l) {
      const int64_t g = w.first + l, n = g / w.bands;
      const bool real = n < x.images;
      image[l] = real ? static_cast<T*>(x.data) + n * x.channels * x.rows * x.cols : nullptr;
      row[l] = w.row0 + g % w.bands * w.row_step;
      used += real;
    }
  }
  bool has(int l, int64_t r, const ConvImages& x) const {
    return image[l] != nullptr && row[l] + r >= 0 && row[l] + r < x.rows;
  }
  // All lanes hold all of n rows.
  bool full(int64_t n, const ConvImages& x) const {
    for (int l = 0; l < kCount; ++l)
      if (!has(l, 0, x) || !has(l, n - 1, x)) return false;
    return true;
  }
  // One image per lane, in whole.
  bool whole(const ConvWindow& w, const ConvImages& x) const {
    return w.bands == 1 && w.row0 == 0 && w.rows == x.rows && w.col0 == 0 && w.cols == x.cols;
  }
};

// Contiguous images in bands: rows of a few hundred pixels are copied lane by lane between their zero borders, and then
// transposed together; so the images are read in runs, where sixteen streams at once would collide in the cache.
template <typename T>
void pack_bands(const ConvImages& x, const ConvWindow& w, const Lanes<T>& lanes, int64_t left, int64_t right,
                int64_t first, int64_t channels, Accumulator<T>* slab) {
  using A = Accumulator<T>;
  constexpr int64_t kMost = 512, line = Lanes<T>::kCount;
  const int64_t rows = std::clamp<int64_t>(kMost / w.cols, 1, w.rows);
  const int64_t planes = rows < w.rows ? 1 : std::max<int64_t>(1, kMost / (rows * w.cols));
  const int64_t pitch = planes * rows * w.cols + 16;
  const auto copy = SPARSE_OPS_DISPATCH(stage<T>);
  const auto gather_all = SPARSE_OPS_DISPATCH(gather<A>);
  A* stages = static_cast<A*>(scratch<kConvRow>(line * pitch * sizeof(A)));
  std::memset(stages, 0, line * pitch * sizeof(A));
  const int64_t ahead = rows < w.rows ? rows * x.cols : planes * x.rows * x.cols;
  const A* src[line];
  for (int l = 0; l < line; ++l) src[l] = stages + l * pitch;
  for (int64_t ch = 0; ch < channels; ch += planes)
    for (int64_t r0 = 0; r0 < w.rows; r0 += rows) {
      const int64_t n = std::min(rows, w.rows - r0), count = std::min(planes, channels - ch);
      for (int l = 0; l < line; ++l) {
        const int64_t row = lanes.row[l] + r0, begin = std::clamp<int64_t>(-row, 0, n);
        const int64_t end = lanes.image[l] == nullptr ? begin : std::clamp(x.rows - row, begin, n);
        A* to = stages + l * pitch + left;
        if (rows < w.rows) {
          std::memset(to - left, 0, begin * w.cols * sizeof(A));
          std::memset(to - left + end * w.cols, 0, (n - end) * w.cols * sizeof(A));
        }
        for (int64_t i = 0; i < count && begin < end; ++i)
          copy(lanes.image[l] + ((first + ch + i) * x.rows + row + begin) * x.cols + w.col0 + left, x.cols, end - begin,
               right - left, ahead, to + (i * w.rows + begin) * w.cols, w.cols);
      }
      gather_all(src, count * n * w.cols, slab + (ch * w.rows + r0) * w.cols * line, line);
    }
}

template <typename T>
void pack(const ConvImages& x, const ConvWindow& w, int64_t first, int64_t channels, Accumulator<T>* slab) {
  using L = Lanes<T>;
  const L lanes(x, w);
  const auto gather_all = SPARSE_OPS_DISPATCH(gather<T>);
  const int64_t plane = w.rows * w.cols, line = L::kCount;
  const int64_t left = std::clamp<int64_t>(-w.col0, 0, w.cols), right = std::clamp(x.cols - w.col0, left, w.cols);
  const T* src[L::kCount];
  const bool whole = lanes.whole(w, x), channels_last = x.layout == ConvLayout::channels_last;
  if (!channels_last && !whole) return pack_bands(x, w, lanes, left, right, first, channels, slab);
  const int64_t longest = channels_last ? channels : channels * plane;
  T* zeros = static_cast<T*>(scratch<kConvRow>(longest * sizeof(T)));
  if (!whole || lanes.used < L::kCount) std::memset(zeros, 0, longest * sizeof(T));
  if (!channels_last) {
    for (int l = 0; l < L::kCount; ++l) src[l] = lanes.image[l] ? lanes.image[l] + first * plane : zeros;
    return gather_all(src, longest, slab, line);
  }
  for (int64_t r = 0; r < w.rows; ++r) {
    const T* row[L::kCount];
    for (int l = 0; l < L::kCount; ++l)
      row[l] = lanes.has(l, r, x) ? lanes.image[l] + ((lanes.row[l] + r) * x.cols + w.col0) * x.channels + first
                                 : nullptr;
    for (int64_t c = 0; c < w.cols; ++c) {
      const bool inside = c >= left && c < right;
      for (int l = 0; l < L::kCount; ++l) src[l] = inside && row[l] != nullptr ? row[l] + c * x.channels : zeros;
      gather_all(src, channels, slab + (r * w.cols + c) * line, plane * line);
    }
  }
}

template <typename T>
void unpack(const ConvImages& y, const ConvWindow& w, int64_t first, int64_t n, const Accumulator<T>* slab) {
  using L = Lanes<T>;
  const L lanes(y, w);
  const auto scatter = SPARSE_OPS_DISPATCH(scatter<T>);
  const int64_t plane = w.rows * w.cols, line = L::kCount, cols = std::min(w.cols, y.cols - w.col0);
  T* dst[L::kCount];
  const bool whole = lanes.whole(w, y), merged = w.cols == y.cols && lanes.full(w.rows, y);
  T* sink = static_cast<T*>(scratch<kConvRow>(n * plane * sizeof(T)));
  if (y.layout == ConvLayout::channels_last) {
    for (int64_t r = 0; r < w.rows; ++r)
      for (int64_t c = 0; c < cols; ++c) {
        for (int l = 0; l < L::kCount; ++l)
          dst[l] = lanes.has(l, r, y)
                       ? lanes.image[l] + ((lanes.row[l] + r) * y.cols + w.col0 + c) * y.channels + first
                       : sink;
        scatter(slab + (r * w.cols + c) * line, plane * line, n, dst);
      }
    return;
  }
  if (whole) {
    for (int l = 0; l < L::kCount; ++l) dst[l] = lanes.image[l] ? lanes.image[l] + first * plane : sink;
    scatter(slab, line, n * plane, dst);
    return;
  }
  for (int64_t ch = 0; ch < n; ++ch)
    for (int64_t r = 0; r < (merged ? 1 : w.rows); ++r) {
      for (int l = 0; l < L::kCount; ++l)
        dst[l] = lanes.has(l, r, y)
                     ? lanes.image[l] + ((first + ch) * y.rows + lanes.row[l] + r) * y.cols + w.col0
                     : sink;
      scatter(slab + (ch * plane + r * w.cols) * line, line, merged ? plane : cols, dst);
    }
}

}  // namespace

void conv_pack(const ConvImages& from, const ConvWindow& window, int64_t first_channel, int64_t n, void* slab) {
  switch (from.dtype) {
    case ScalarType::Double: return pack<double>(from, window, first_channel, n, static_cast<double*>(slab));
    case ScalarType::Half: return pack<Half>(from, window, first_channel, n, static_cast<float*>(slab));
    case ScalarType::BFloat16: return pack<Bfloat>(from, window, first_channel, n, static_cast<float*>(slab));
    default: return pack<float>(from, window, first_channel, n, static_cast<float*>(slab));
  }
}

void conv_unpack(const ConvImages& to, const ConvWindow& window, int64_t first_channel, int64_t n, const void* slab) {
  switch (to.dtype) {
    case ScalarType::Double: return unpack<double>(to, window, first_channel, n, static_cast<const double*>(slab));
    case ScalarType::Half: return unpack<Half>(to, window, first_channel, n, static_cast<const float*>(slab));
    case ScalarType::BFloat16: return unpack<Bfloat>(to, window, first_channel, n, static_cast<const float*>(slab));
    default: return unpack<float>(to, window, first_channel, n, static_cast<const float*>(slab));
  }
}

}  // namespace sparse_ops
