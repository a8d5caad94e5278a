// The entries of dY B^T at the positions of a CSR pattern.
#pragma once

#include "../common.h"

namespace sparse_ops {

// dvalues (nnz,): for each position (m, k) of the pattern the sum over N of dy and b. dy is (N, M) if dy_transposed,
// else (M, N); b is (N, K) if b_transposed, else (K, N). One dtype.
void csr_sddmm(Tensor dy, Tensor b, Tensor row_offsets, Tensor columns, bool dy_transposed, bool b_transposed,
               Tensor dvalues);

}  // namespace sparse_ops
