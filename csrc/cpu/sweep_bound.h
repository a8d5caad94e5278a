// Lists of tensors that stay the same from step to step, kept here: handing one to C++ costs 0.13 us a tensor.
#pragma once

#include <memory>

#include "../common.h"

namespace sparse_ops {

using Ints = std::vector<int64_t>;

// What a step of SGD takes beside its gradients. The tensors are torch's own: what they hold, their addresses, types and
// shapes are read at each step.
struct BoundSweep {
  Tensors weights, momenta, masks, groups;
  Ints scopes;
};

int64_t sweep_bind(Tensors weights, Tensors momenta, Tensors masks, Tensors groups, Ints scopes);
void sweep_release(int64_t bound);
std::shared_ptr<const BoundSweep> bound_sweep(int64_t bound);

}  // namespace sparse_ops
