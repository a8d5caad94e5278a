// The weight gradient of a sparse convolution where both x and dy are batch-last.
#pragma once

#include "sparse_conv2d_geometry.h"
#include "sparse_conv2d_lanes.h"

namespace sparse_ops {

// dvalues (nnz,) at the pattern of the weight's matrix (target channels, source channels / groups * taps).
template <typename T>
void conv_weight_grad_batch_last(const ConvImages& x, const ConvImages& dy, const int32_t* row_offsets,
                                 const int32_t* columns, T* dvalues, int64_t groups, const ConvAxis& h,
                                 const ConvAxis& w);

}  // namespace sparse_ops
