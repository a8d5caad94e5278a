// Packed masks that keep the largest magnitudes of all tensors together.
#pragma once

#include "../common.h"

namespace sparse_ops {

// Writes masks (uint8, eight elements a byte in storage order, padded with ones) with exactly `zeros` zeros; of equal
// magnitudes at the threshold the first in tensor order, then logical order, are kept, or none with prune_ties.
// Returns the first tensor that holds a NaN (then the masks mean nothing), or -1. Tensors are dense, not all empty.
int64_t magnitude_mask(Tensors tensors, ScalarType promoted, int64_t zeros, bool prune_ties, Tensors masks);

}  // namespace sparse_ops
