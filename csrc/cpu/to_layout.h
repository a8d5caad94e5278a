// Copies between orders of elements in memory.
#pragma once

#include "../common.h"

namespace sparse_ops {

// y's elements become x's; any strides, the same sizes and type.
void to_layout(Tensor x, Tensor y);

}  // namespace sparse_ops
