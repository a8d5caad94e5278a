// The penalty's gradient added to gradient buffers, for optimisers that have no sweep inside.
#include "sweep.h"

#define SPARSE_OPS_BODY "cpu/add_penalty_grad_body.h"
#include "../foreach_isa.h"

namespace sparse_ops {

void add_penalty_grad_(Tensors grads, Tensors weights, Tensors groups, Ints scopes, Tensor coefficients,
                       std::string penalty, OptionalTensor grad_scale) {
  const double scale = number(grad_scale, 1);
  const std::vector<SweepScope> lines = scope_factors(coefficients, penalty);
  const std::vector<SweepPiece> pieces = sweep_pieces(weights);
  const auto kernel = SPARSE_OPS_DISPATCH(add_penalty_chunk);
  parallel_pieces(pieces, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const auto [t, first, n] = pieces[p];
      if (scopes[t] < 0 || (lines[scopes[t]].on == 0 && lines[scopes[t]].off == 0)) continue;
      SweepChunk chunk{};
      chunk.n = n;
      chunk.w = operand_at(operand(weights[t]), first);
      chunk.g = operand_at(operand(grads[t]), first);
      chunk.group = packed_at(groups, t, first);
      kernel(chunk, parse_penalty(penalty), lines[scopes[t]], scale);
    }
  });
}

}  // namespace sparse_ops
