// A sparse matrix times or against dense matrices, as the bodies see it.
#pragma once

#include "../common.h"
#include "activation.h"

namespace sparse_ops {

enum class Dtype { f32, f64, f16, bf16 };

inline Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double: return Dtype::f64;
    case ScalarType::Half: return Dtype::f16;
    case ScalarType::BFloat16: return Dtype::bf16;
    default: return Dtype::f32;
  }
}

// What a packed tile of b holds: the compute type; a half dtype as it is, which is half of the bytes; the same, for
// products of pairs of bfloat16.
enum class Panel { computed, halves, pairs };

// Rows of a product whose sums are stored together: a transposed store writes as many numbers in a row, then those of
// the next sample, whose place may fall into the same set of the cache. And rows of dY that are packed together.
constexpr int64_t kSumRows = 64, kPackedRows = 16;

// A is (M, K). `b` belongs to its columns, `y` to its rows; N is the other dimension of both, outermost in memory where
// `transposed` (of b; y_transposed of y), else innermost. values, bias: of the compute type (float, double for f64); of
// pairs, whose products take subnormal numbers for 0, the values stay bfloat16, and for N = 1 both stay what they are.
// addend lies like y. direct: b is one tile wide and of the panel's type, so it is the panel.
struct CsrProblem {
  const int32_t* offsets;
  const int32_t* columns;
  const void* values;
  const void* bias;
  const void* b;
  const void* addend;
  void* y;  // only read by SDDMM
  int64_t M, K, N;
  bool transposed, y_transposed, direct;
  Activation activation;
  Dtype dtype;
  Panel panel;
};

}  // namespace sparse_ops
