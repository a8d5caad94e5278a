// The forward convolution of operands that need no preparation, in one call: checks, output and sums.
#include <array>

#include "sparse_conv2d.h"
#include "sparse_conv2d_lanes.h"

namespace sparse_ops {
namespace {

using Order = std::array<int, 4>;  // dimensions as they lie in memory, outermost first
constexpr Order kOrders[] = {{0, 1, 2, 3}, {0, 2, 3, 1}, {2, 3, 1, 0}};  // by ConvLayout

bool lies(const Tensor& t, const Order& order) {
  int64_t expected = 1;
  for (int i = 3; i >= 0; --i) {
    const int d = order[i];
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// The first layout that an image batch has, or -1.
int layout_of(const Tensor& x) {
  for (int i = 0; i < 3; ++i)
    if (lies(x, kOrders[i])) return i;
  return -1;
}

// n images of `channels` channels in a layout.
Tensor new_images(const Tensor& like, int layout, int64_t n, int64_t channels, int64_t height, int64_t width) {
  using torch::stable::transpose;
  const auto empty = [&](std::vector<int64_t> sizes) { return torch::stable::new_empty(like, sizes); };
  switch (static_cast<ConvLayout>(layout)) {
    case ConvLayout::contiguous: return empty({n, channels, height, width});
    case ConvLayout::channels_last: return transpose(transpose(empty({n, height, width, channels}), 2, 3), 1, 2);
    default: return transpose(transpose(transpose(empty({height, width, channels, n}), 0, 3), 1, 2), 2, 3);
  }
}

bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half ||
         type == ScalarType::Double;
}

bool is_line(const Tensor& t, ScalarType wanted, int64_t n) {
  return t.is_cpu() && t.scalar_type() == wanted && t.dim() == 1 && t.numel() == n && t.is_contiguous();
}

}  // namespace

std::optional<Tensor> sparse_conv2d_plain(Tensor x, Tensor values, Tensor row_offsets, Tensor columns,
                                          std::optional<Tensor> bias, int64_t width, Sizes kernel_size, Sizes stride,
                                          Sizes padding, Sizes dilation, int64_t groups, std::optional<Tensor> addend,
                                          std::string activation, int64_t most_bytes) {
  const ScalarType type = values.scalar_type();
  const int64_t nnz = columns.numel(), out = row_offsets.numel() - 1;
  for (const Sizes& pair : {kernel_size, stride, padding, dilation})
    if (pair.size() != 2) return std::nullopt;
  if (!is_floating(type) || out < 0 || groups < 1 || out % groups != 0 || !is_line(values, type, nnz) ||
      !is_line(columns, ScalarType::Int, nnz) || !is_line(row_offsets, ScalarType::Int, out + 1) ||
      (bias && !is_line(*bias, type, out)))
    return std::nullopt;
  if (activation != "none" && activation != "relu" && activation != "gelu") return std::nullopt;
  const int64_t taps = kernel_size[0] * kernel_size[1];
  if (!x.is_cpu() || x.scalar_type() != type || x.dim() != 4 || taps < 1 || width % taps != 0 ||
      x.size(1) != width / taps * groups)
    return std::nullopt;
  int64_t size[2];
  for (int i = 0; i < 2; ++i) {
    if (kernel_size[i] < 1 || stride[i] < 1 || padding[i] < 0 || dilation[i] < 1) return std::nullopt;
    const int64_t free = x.size(2 + i) + 2 * padding[i] - (dilation[i] * (kernel_size[i] - 1) + 1);
    if (free < 0) return std::nullopt;
    size[i] = free / stride[i] + 1;
  }
  const int64_t n = x.size(0);
  if (n * out * size[0] * size[1] * static_cast<int64_t>(x.element_size()) > most_bytes) return std::nullopt;
  const int layout = layout_of(x);
  if (layout < 0) return std::nullopt;
  if (addend && (!addend->is_cpu() || addend->scalar_type() != type || addend->dim() != 4 || addend->size(0) != n ||
                 addend->size(1) != out || addend->size(2) != size[0] || addend->size(3) != size[1] ||
                 !lies(*addend, kOrders[layout])))
    return std::nullopt;
  Tensor y = new_images(x, layout, n, out, size[0], size[1]);
  sparse_conv2d(x, values, row_offsets, columns, bias, y, kernel_size, stride, padding, dilation, groups, addend,
                activation, layout);
  return y;
}

}  // namespace sparse_ops
