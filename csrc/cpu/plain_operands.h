// Whether a sweep's tensors are all as they usually are: the checks of sparse_ops/ops, quick and without a message.
#pragma once

#include "../common.h"

namespace sparse_ops {

// True where every weight is a floating point CPU tensor without gaps, each of `likes` holds one tensor per weight, of
// its shape and strides, and each of `packed` is empty or holds one packed tensor per weight. False says nothing more:
// Python then names the culprit, or copies what has other strides. A tensor that says that it is all zeros has no
// memory: it is not plain. That it is a negative view is not to be seen here: torch's dispatcher and Python look for
// that.
bool plain_operands(const Tensors& weights, const std::vector<const Tensors*>& likes,
                    const std::vector<const Tensors*>& packed);

// True where each of `counts` is one float32 on the CPU, and there is one for each weight.
bool plain_counts(const Tensors& counts, size_t weights);

// True where there is one scope per weight, -1 or a row below `rows`.
bool plain_scopes(const std::vector<int64_t>& scopes, size_t weights, int64_t rows);

// True where no two tensors share memory.
bool apart(const Tensors& tensors);

}  // namespace sparse_ops
