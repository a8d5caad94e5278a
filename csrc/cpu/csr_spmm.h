// Y = A B (+ bias per row) for a sparse A in CSR and a dense B.
#pragma once

#include <optional>

#include "../common.h"

namespace sparse_ops {

// transposed: b is (N, K) and y (N, M), else b is (K, N) and y (M, N). values, b, y and bias (M,) have one dtype.
void csr_spmm(Tensor values, Tensor row_offsets, Tensor columns, Tensor b, std::optional<Tensor> bias, bool transposed,
              Tensor y);

}  // namespace sparse_ops
