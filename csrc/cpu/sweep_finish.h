// Ends a step of the sweep: the exact threshold, the next coefficients and the next bracket of each scope.
#pragma once

#include "sweep.h"

namespace sparse_ops {

// False, and nothing is done, where the weights are not plain (plain_operands.h).
bool sweep_finish_(Tensors weights, Ints scopes, Ints ranks, double tolerance, bool exact, Tensor coefficients,
                   Tensor brackets, Tensor statistics, Tensor candidates, Tensor report);

}  // namespace sparse_ops
