// The entries of dY B^T at the positions of a CSR pattern.
#pragma once

#include "../common.h"

namespace sparse_ops {

// dvalues (nnz,): for each position (m, k) of the pattern the sum over N of dy and b. transposed: dy is (N, M) and b
// (N, K), else (M, N) and (K, N). One dtype.
void csr_sddmm(Tensor dy, Tensor b, Tensor row_offsets, Tensor columns, bool transposed, Tensor dvalues);

}  // namespace sparse_ops
