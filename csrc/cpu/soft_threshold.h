// Soft thresholding per group and its gradients (see sparse_ops/ops/soft_threshold.py).
#pragma once

#include "../common.h"

namespace sparse_ops {

// y = sign(w) max(|w| - t_g, 0); a group is a run of the weight's storage, as many as there are thresholds (float64).
// t_g = thresholds[g], times the group's sum of magnitudes where `relative`. levels (G, 3) float64 receives t_g as it
// was used, its derivative by any |w| of the group, and its derivative by thresholds[g].
void soft_threshold(Tensor weight, Tensor thresholds, bool relative, Tensor y, Tensor levels);

// grad_weight and sums (G,) float64, the gradient by t_g; elu: a pruned weight passes exp(|w| - t_g) of the gradient.
void soft_threshold_backward(Tensor grad, Tensor weight, Tensor levels, bool relative, bool elu, Tensor grad_weight,
                             Tensor sums);

}  // namespace sparse_ops
