// The structure of a sparse matrix from a dense one.
#pragma once

#include <optional>

#include "../common.h"

namespace sparse_ops {

// row_offsets (rows + 1,) int32 of the elements of a contiguous (rows, columns) matrix that are not zero; a NaN is
// none, -0.0 is one. Returns their number, which the caller checks: beyond 2^31 - 1 the offsets are meaningless.
int64_t csr_pattern_offsets(Tensor dense, Tensor row_offsets);

// The rest, for row_offsets from there: columns and values (or nothing), and the transpose, values[t_permutation] in
// rows t_row_offsets (columns + 1,) and columns t_columns. All int32 but values, of the matrix's type.
void csr_pattern_fill(Tensor dense, Tensor row_offsets, Tensor columns, Tensor t_row_offsets, Tensor t_columns,
                      Tensor t_permutation, std::optional<Tensor> values);

// out[i] = values[t_permutation[i]] for values of any type of 2, 4 or 8 bytes; torch does it on one thread.
void csr_pattern_permute(Tensor values, Tensor t_permutation, Tensor out);

}  // namespace sparse_ops
