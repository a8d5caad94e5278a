// Convolution of images with a sparse weight, its input gradient and its weight gradient at the pattern.
#pragma once

#include <optional>

#include "../common.h"

namespace sparse_ops {

using Sizes = std::vector<int64_t>;

void sparse_conv2d(Tensor x, Tensor values, Tensor row_offsets, Tensor columns, std::optional<Tensor> bias, Tensor y,
                   Sizes kernel_size, Sizes stride, Sizes padding, Sizes dilation, int64_t groups,
                   std::optional<Tensor> addend, std::string activation, int64_t layout);

// The same into an output of its own, where every operand is as the kernels want it and the output takes no more than
// most_bytes; otherwise nothing. width: columns of the weight's matrix.
std::optional<Tensor> sparse_conv2d_plain(Tensor x, Tensor values, Tensor row_offsets, Tensor columns,
                                          std::optional<Tensor> bias, int64_t width, Sizes kernel_size, Sizes stride,
                                          Sizes padding, Sizes dilation, int64_t groups, std::optional<Tensor> addend,
                                          std::string activation, int64_t most_bytes);

void sparse_conv2d_input_grad(Tensor dy, Tensor values, Tensor t_row_offsets, Tensor t_columns, Tensor t_permutation,
                              Tensor dx, Sizes kernel_size, Sizes stride, Sizes padding, Sizes dilation,
                              int64_t groups, int64_t layout);

void sparse_conv2d_weight_grad(Tensor x, Tensor dy, Tensor row_offsets, Tensor columns, Tensor dvalues,
                               Sizes kernel_size, Sizes stride, Sizes padding, Sizes dilation, int64_t groups,
                               int64_t x_layout, int64_t dy_layout);

}  // namespace sparse_ops
