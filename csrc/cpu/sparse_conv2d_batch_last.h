// Convolution of images whose batch lies innermost in memory, and its input gradient: the lines that a sum reads, one
// of all images per pixel and channel, lie there as they are needed, so that nothing is packed.
#pragma once

#include "sparse_conv2d_geometry.h"
#include "sparse_conv2d_lanes.h"
#include "sparse_conv2d_taps.h"
#include "sparse_conv2d_weight.h"

namespace sparse_ops {

constexpr int kDenseRows = 4;

// What a thread sums: a tile of `lanes` lanes of every line of target channels.
template <typename A>
struct ConvLines {
  const void *x, *addend;  // the first of the lanes; addend, like y, and bias may be null
  const A* bias;
  void* y;
  int64_t pitch;  // elements from line to line
  int64_t source_channels, channels;  // lines of a pixel
  int lanes;  // at most 64 bytes of accumulators
  ConvActivation activation;
  bool dense;  // no value is missing: kDenseRows channels are summed together
  bool pairs;  // bfloat16 in products of two, which take subnormal numbers for 0
  bool stream;  // y is larger than the caches: its lines go past them, so that none is read before it is written
  const ConvRun* runs;
  const ConvSegment* segments;
  int64_t in_step, out_step;
  const ConvEntry<A>* entries;
  const int32_t* starts;
  int64_t taps;
};

// target = activation(weight * source + bias + addend); bias: (channels,), addend: like the target, or null.
template <typename T>
void conv_batch_last(const ConvImages& source, const ConvImages& target, const ConvWeight<T>& weight, const T* bias,
                     const T* addend, ConvActivation activation, const ConvAxis& h, const ConvAxis& w);

}  // namespace sparse_ops
