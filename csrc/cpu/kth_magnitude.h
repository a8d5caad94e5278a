// Exact selection among the magnitudes of all tensors together, on their bit patterns.
#pragma once

#include "floats.h"

namespace sparse_ops {

// A magnitude as an integer: the bits of |x| in the promoted type. They order like the magnitudes, NaN above infinity.
struct Selection {
  uint64_t key;          // of the k-th smallest
  int64_t below, equal;  // how many keys are smaller, how many the same
  int64_t nan_tensor;    // the first tensor with a NaN, or -1; with a NaN the rest means nothing
};

// 1 <= k <= the number of elements; the tensors are dense.
Selection select_magnitude(const Tensors& tensors, Float promoted, int64_t k);

// out: 0-dim, of the promoted type.
void kth_magnitude(Tensors tensors, int64_t k, Tensor out);

}  // namespace sparse_ops
