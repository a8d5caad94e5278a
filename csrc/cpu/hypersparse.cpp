// The HyperSparse penalty: its sums and its gradient, chunk by chunk.
#include "hypersparse.h"

#include "chunks.h"
#include "floats.h"

#define SPARSE_OPS_BODY "cpu/hypersparse_body.h"
#include "../foreach_isa.h"

namespace sparse_ops {

void hypersparse_sums(Tensors weights, Tensor scale, Tensor out) {
  const double s = *static_cast<const double*>(scale.const_data_ptr());
  const std::vector<Chunk> chunks = chunks_of(weights);
  std::vector<double> sums(4 * chunks.size());
  const auto sum = SPARSE_OPS_DISPATCH(hypersparse_chunk_sums);
  parallel_chunks(chunks, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const Tensor& w = weights[chunks[c].tensor];
      const auto* data = static_cast<const char*>(w.const_data_ptr()) + chunks[c].first * w.element_size();
      sum(data, float_type(w.scalar_type()), chunks[c].count, s, &sums[4 * c]);
    }
  });
  double total[4] = {0, 0, 0, 0};  // in the order of the chunks: the same bits for any number of threads
  for (size_t i = 0; i < sums.size(); ++i) total[i % 4] += sums[i];
  std::memcpy(out.mutable_data_ptr(), total, sizeof(total));
}

void hypersparse_penalty_backward(Tensors weights, Tensor coefficients, Tensors grads) {
  const auto* values = static_cast<const double*>(coefficients.const_data_ptr());
  const double base = values[0], strength = values[1], s = values[2];
  const std::vector<Chunk> chunks = chunks_of(weights);
  const auto grad = SPARSE_OPS_DISPATCH(hypersparse_chunk_grads);
  parallel_chunks(chunks, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const Tensor& w = weights[chunks[c].tensor];
      const int64_t size = w.element_size(), offset = chunks[c].first * size;
      auto* to = static_cast<char*>(grads[chunks[c].tensor].mutable_data_ptr()) + offset;
      if (base == 0 && strength == 0) {
        std::memset(to, 0, chunks[c].count * size);
        continue;
      }
      const auto* data = static_cast<const char*>(w.const_data_ptr()) + offset;
      grad(data, float_type(w.scalar_type()), chunks[c].count, base, strength, s, to);
    }
  });
}

}  // namespace sparse_ops
