// Y = activation(A B + bias per row + addend) for a sparse A in CSR and a dense B.
#pragma once

#include <optional>
#include <string>

#include "../common.h"

namespace sparse_ops {

// transposed: b is (N, K) and y (N, M), else b is (K, N) and y (M, N). values, b, y, bias (M,) and addend, which lies
// like y, have one dtype. activation: "none", "relu" or "gelu".
void csr_spmm(Tensor values, Tensor row_offsets, Tensor columns, Tensor b, std::optional<Tensor> bias, bool transposed,
              Tensor y, std::optional<Tensor> addend, std::string activation);

// The same into a new tensor, which lies like b; nothing where the operands are not as they usually are: then Python
// names the culprit, or copies what has other strides; nor where the result takes more than most_bytes. K: the columns
// of A. Where transposed, b may be (..., K), and the result is (..., M).
std::optional<Tensor> csr_spmm_plain(Tensor values, Tensor row_offsets, Tensor columns, Tensor b,
                                     std::optional<Tensor> bias, bool transposed, int64_t K,
                                     std::optional<Tensor> addend, std::string activation, int64_t most_bytes);

}  // namespace sparse_ops
