// Writes +0 wherever a packed mask is 0.
#pragma once

#include "../common.h"

namespace sparse_ops {

void apply_masks_(Tensors tensors, Tensors masks);

}  // namespace sparse_ops
