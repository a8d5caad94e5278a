// Copies between orders of elements in memory, in tiles of both innermost dimensions, so that every cache line that is
// read or written is used whole while it is in the L1 cache.
#include "to_layout.h"

#include <algorithm>

namespace sparse_ops {
namespace {

struct Axis {
  int64_t size, from, to;  // how many, and the strides in x and in y
};

// A line of 64 bytes each way, where the tile is whole.
template <typename T>
void copy_tile(const T* x, T* y, int64_t rows, int64_t cols, int64_t x_row, int64_t y_col) {
  constexpr int64_t kSide = 64 / sizeof(T);
  if (rows == kSide && cols == kSide) {
    T tile[kSide][kSide];
    for (int64_t r = 0; r < kSide; ++r)
      for (int64_t c = 0; c < kSide; ++c) tile[c][r] = x[r * x_row + c];
    for (int64_t c = 0; c < kSide; ++c)
      for (int64_t r = 0; r < kSide; ++r) y[c * y_col + r] = tile[c][r];
    return;
  }
  for (int64_t c = 0; c < cols; ++c)
    for (int64_t r = 0; r < rows; ++r) y[c * y_col + r] = x[r * x_row + c];
}

template <typename T>
void copy(const T* x, T* y, std::vector<Axis> axes) {
  constexpr int64_t kSide = 64 / sizeof(T), kGrain = 1 << 14;
  // The innermost of y comes last, the innermost of x before it; axes that follow each other in both become one.
  std::sort(axes.begin(), axes.end(), [](const Axis& a, const Axis& b) { return a.to > b.to; });
  for (size_t i = 0; i + 1 < axes.size();) {
    const Axis inner = axes[i + 1];
    if (axes[i].from == inner.from * inner.size && axes[i].to == inner.to * inner.size) {
      axes[i] = {axes[i].size * inner.size, inner.from, inner.to};
      axes.erase(axes.begin() + static_cast<int64_t>(i) + 1);
    } else {
      ++i;
    }
  }
  const Axis rows = axes.back();
  axes.pop_back();
  const auto least = std::min_element(axes.begin(), axes.end(),
                                      [](const Axis& a, const Axis& b) { return a.from < b.from; });
  Axis cols{1, 0, 0};
  if (least != axes.end()) {
    cols = *least;
    axes.erase(least);
  }
  int64_t outer = 1;
  for (const Axis& axis : axes) outer *= axis.size;
  const bool plain = rows.to == 1 && (cols.from == 1 || cols.size == 1);
  const int64_t col_tiles = (cols.size + kSide - 1) / kSide;
  const int64_t grain = std::max<int64_t>(1, kGrain / (kSide * rows.size));
  parallel(0, outer * col_tiles, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      int64_t at = i / col_tiles, from = 0, to = 0;
      for (size_t d = axes.size(); d-- > 0; at /= axes[d].size) {
        from += at % axes[d].size * axes[d].from;
        to += at % axes[d].size * axes[d].to;
      }
      const int64_t c = i % col_tiles * kSide, n = std::min(kSide, cols.size - c);
      const T* in = x + from + c * cols.from;
      T* out = y + to + c * cols.to;
      for (int64_t r = 0; r < rows.size; r += kSide) {
        const int64_t m = std::min(kSide, rows.size - r);
        if (plain) {
          copy_tile(in + r * rows.from, out + r, m, n, rows.from, cols.to);
        } else {
          for (int64_t k = 0; k < n; ++k)
            for (int64_t j = r; j < r + m; ++j) out[k * cols.to + j * rows.to] = in[k * cols.from + j * rows.from];
        }
      }
    }
  });
}

}  // namespace

void to_layout(Tensor x, Tensor y) {
  if (x.numel() == 0) return;
  std::vector<Axis> axes;
  for (int64_t d = 0; d < x.dim(); ++d)
    if (x.size(d) != 1) axes.push_back({x.size(d), x.stride(d), y.stride(d)});
  if (axes.empty()) axes.push_back({1, 1, 1});
  const void* from = x.const_data_ptr();
  void* to = y.mutable_data_ptr();
  switch (x.element_size()) {
    case 1: return copy(static_cast<const uint8_t*>(from), static_cast<uint8_t*>(to), axes);
    case 2: return copy(static_cast<const uint16_t*>(from), static_cast<uint16_t*>(to), axes);
    case 4: return copy(static_cast<const uint32_t*>(from), static_cast<uint32_t*>(to), axes);
    case 8: return copy(static_cast<const uint64_t*>(from), static_cast<uint64_t*>(to), axes);
    default: STD_TORCH_CHECK(false, "to_layout: elements of ", x.element_size(), " bytes");
  }
}

}  // namespace sparse_ops
