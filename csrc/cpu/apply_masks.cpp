// Writes +0 wherever a packed mask is 0.
#include "apply_masks.h"

#define SPARSE_OPS_BODY "cpu/apply_masks_body.h"
#include "../foreach_isa.h"

namespace sparse_ops {

// Eight weights a mask byte: a chunk that is a multiple of eight starts on a byte.
constexpr int64_t kChunk = 1 << 16;

void apply_masks_(Tensors tensors, Tensors masks) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t n = tensors[i].numel(), size = tensors[i].element_size();
    auto* data = static_cast<unsigned char*>(tensors[i].mutable_data_ptr());
    const auto* mask = static_cast<const uint8_t*>(masks[i].const_data_ptr());
    const auto zero = SPARSE_OPS_DISPATCH(zero_masked);
    parallel(0, (n + kChunk - 1) / kChunk, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const int64_t first = c * kChunk, count = n - first < kChunk ? n - first : kChunk;
        zero(data + first * size, mask + first / 8, count, size);
      }
    });
  }
}

}  // namespace sparse_ops
