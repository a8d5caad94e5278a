// Lists of tensors that stay the same from step to step, kept here: handing one to C++ costs 0.13 us a tensor.
#pragma once

#include <memory>

#include "../common.h"

namespace sparse_ops {

using Ints = std::vector<int64_t>;

// What a sweep takes beside its gradients. The tensors are torch's own: what they hold, their addresses, types and
// shapes are read at each step.
struct SweepLists {
  Tensors weights;
  std::vector<Tensors> states;  // the momenta; or first and second moments, and with amsgrad the greatest second ones
  Tensors steps;                // AdamW's counts, else none
  Tensors masks, groups;
  Ints scopes;
};

// `states` holds the lists one after the other, each of one tensor per weight.
int64_t sweep_bind(Tensors weights, Tensors states, Tensors steps, Tensors masks, Tensors groups, Ints scopes);
void sweep_release(int64_t bound);
std::shared_ptr<const SweepLists> bound_sweep(int64_t bound);

}  // namespace sparse_ops
