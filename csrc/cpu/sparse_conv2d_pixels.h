// Convolution of images as users hold them, with neighbouring pixels in the lanes of a register
// (sparse_conv2d_planes.h).
#pragma once

#include "sparse_conv2d_geometry.h"
#include "sparse_conv2d_planes.h"
#include "sparse_conv2d_weight.h"

namespace sparse_ops {

// True where conv_pixels is to be taken: it serves, and is quicker than bands of images in lanes.
template <typename T>
bool conv_pixels_suit(const ConvImages& source, const ConvImages& target, const ConvAxis& h, const ConvAxis& w);

// target = activation(weight * source + bias + addend); bias: (channels,), addend: like the target, or null.
template <typename T>
void conv_pixels(const ConvImages& source, const ConvImages& target, const ConvWeight<T>& weight, const T* bias,
                 const ConvImages* addend, ConvActivation activation, const ConvAxis& h, const ConvAxis& w);

}  // namespace sparse_ops
