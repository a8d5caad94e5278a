// The HyperSparse penalty: its sums and its gradient (see sparse_ops/ops/hypersparse_penalty.py).
#pragma once

#include "../common.h"

namespace sparse_ops {

// out: (4,) float64 = sum |w|, sum tanh(s|w|), sum |w| sech^2(s|w|), sum w^2 tanh(s|w|) sech^2(s|w|); scale: float64.
void hypersparse_sums(Tensors weights, Tensor scale, Tensor out);

// grads[i] = sign(w) (base + strength sech^2(s|w|)), in the weight's storage order; coefficients: (base, strength, s)
// in float64. base = strength = 0 writes zeros whatever the weights hold.
void hypersparse_penalty_backward(Tensors weights, Tensor coefficients, Tensors grads);

}  // namespace sparse_ops
