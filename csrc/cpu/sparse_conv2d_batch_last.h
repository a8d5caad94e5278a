// Convolution of images whose batch lies innermost in memory, and its input gradient: the lines that a sum reads, one
// of all images per channel and pixel, lie there as they are needed, so that nothing is packed.
#pragma once

#include "sparse_conv2d_geometry.h"
#include "sparse_conv2d_lanes.h"
#include "sparse_conv2d_weight.h"

namespace sparse_ops {

// What a thread sums at once: lanes first .. first + lanes of every line of target channels.
struct ConvLines {
  const void *x, *bias, *addend;  // lanes of x, of the accumulator's type, like y; the last two may be null
  void* y;
  int64_t pitch, plane;  // elements from line to line, lines of a target channel
  int lanes;             // at most 64 bytes of accumulators
  ConvActivation activation;
};

// target = activation(weight * source + bias + addend); bias: (channels,), addend: like the target, or null.
template <typename T>
void conv_batch_last(const ConvImages& source, const ConvImages& target, const ConvWeight<T>& weight, const T* bias,
                     const T* addend, ConvActivation activation, const ConvAxis& h, const ConvAxis& w);

}  // namespace sparse_ops
