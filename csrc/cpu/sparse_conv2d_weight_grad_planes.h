// The weight gradient of a convolution of images as users hold them, over planes of pixels (sparse_conv2d_planes.h).
#pragma once

#include "sparse_conv2d_geometry.h"
#include "sparse_conv2d_lanes.h"
#include "sparse_conv2d_planes.h"

namespace sparse_ops {

// What the sums of a target channel's values read: value e multiplies the line at x + offsets[e].
template <typename A>
struct PlaneDots {
  const A* x;   // the plane of channel 0 from the first target's position on
  const A* dy;  // a run of the target channel's pixels
  const ConvLine* lines;
  int64_t count;  // lines
  const int64_t* offsets;
  int64_t n;     // values
  double* sums;  // of the values, added to
};

// False, and nothing is done, where planes do not serve or bands of images in lanes (sparse_conv2d_lanes.h) are
// quicker.
template <typename T>
bool conv_weight_grad_planes(const ConvImages& x, const ConvImages& dy, const int32_t* row_offsets,
                             const int32_t* columns, T* dvalues, int64_t groups, const ConvAxis& h, const ConvAxis& w);

}  // namespace sparse_ops
