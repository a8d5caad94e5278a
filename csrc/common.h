// What every CPU kernel shares: the tensor type, argument checks, threads and the choice of the instruction set.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <string>
#include <vector>

namespace sparse_ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

enum class Isa { scalar, avx2, avx512, avx512_bf16 };  // the last adds products of bfloat16 pairs

// The best instruction set of this processor, or the one named by the environment variable SPARSE_OPS_CPU_ISA.
Isa isa();
std::string isa_name();
// For tests: "scalar", "avx2", "avx512", "avx512_bf16", or "" to go back to the environment and the processor.
void set_isa(const std::string& name);

// f(begin, end) over disjoint pieces of [begin, end). Results must not depend on where the pieces are cut.
template <typename F>
void parallel(int64_t begin, int64_t end, int64_t grain, const F& f) {
  if (begin < end) torch::stable::parallel_for(begin, end, grain, f);
}

}  // namespace sparse_ops
