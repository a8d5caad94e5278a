// Packed masks that keep the largest magnitudes: exact selection, one writing pass, and ties where they straddle.
#include "magnitude_mask.h"

#include <algorithm>

#include "chunks.h"
#include "kth_magnitude.h"

#define SPARSE_OPS_BODY "cpu/magnitude_mask_body.h"
#include "../foreach_isa.h"

namespace sparse_ops {
namespace {

class Writer {
 public:
  Writer(const Tensors& tensors, const Tensors& masks, Float promoted, uint64_t threshold)
      : tensors_(tensors), masks_(masks), promoted_(promoted), threshold_(threshold) {}

  // Packs elements first, first + 1, ... of a tensor's storage; returns how many equal the threshold.
  int64_t write(const Chunk& chunk, bool keep_equal) const {
    const Tensor& t = tensors_[chunk.tensor];
    const Float type = float_type(t.scalar_type());
    const char* data = static_cast<const char*>(t.const_data_ptr()) + chunk.first * size_of(type);
    return SPARSE_OPS_DISPATCH(pack_mask)(data, type, promoted_, chunk.count, threshold_, keep_equal,
                                          mask(chunk.tensor) + chunk.first / 8);
  }

  // Keeps the first `kept` elements that equal the threshold among storage elements first, ... of a contiguous tensor.
  void keep_first(const Chunk& chunk, int64_t kept) const {
    for (int64_t i = chunk.first; kept > 0; ++i) kept -= keep_if_equal(chunk.tensor, i);
  }

  // The same over a whole tensor whose storage order is not its logical order.
  void keep_first_logical(int64_t tensor, int64_t kept) const {
    const Tensor& t = tensors_[tensor];
    const int64_t dims = t.dim();
    std::vector<int64_t> index(dims);
    int64_t offset = 0;
    while (true) {
      kept -= keep_if_equal(tensor, offset);
      if (kept == 0) return;
      for (int64_t d = dims - 1;; --d) {
        offset += t.stride(d);
        if (++index[d] < t.size(d)) break;
        offset -= t.stride(d) * index[d];
        index[d] = 0;
      }
    }
  }

 private:
  uint8_t* mask(int64_t tensor) const { return static_cast<uint8_t*>(masks_[tensor].mutable_data_ptr()); }

  int64_t keep_if_equal(int64_t tensor, int64_t i) const {
    uint8_t bits;
    const Chunk one{tensor, i, 1};
    const Tensor& t = tensors_[one.tensor];
    const Float type = float_type(t.scalar_type());
    const char* data = static_cast<const char*>(t.const_data_ptr()) + i * size_of(type);
    if (SPARSE_OPS_DISPATCH(pack_mask)(data, type, promoted_, 1, threshold_, true, &bits) == 0) return 0;
    mask(tensor)[i >> 3] |= static_cast<uint8_t>(1 << (i & 7));
    return 1;
  }

  const Tensors& tensors_;
  const Tensors& masks_;
  Float promoted_;
  uint64_t threshold_;
};

}  // namespace

int64_t magnitude_mask(Tensors tensors, ScalarType promoted_type, int64_t zeros, bool prune_ties, Tensors masks) {
  const Float promoted = float_type(promoted_type);
  const Selection selection = select_magnitude(tensors, promoted, std::max<int64_t>(zeros, 1));
  if (selection.nan_tensor >= 0) return selection.nan_tensor;
  if (zeros == 0) {
    for (const Tensor& mask : masks) std::memset(mask.mutable_data_ptr(), 0xff, mask.numel());
    return -1;
  }
  const Writer writer(tensors, masks, promoted, selection.key);
  const std::vector<Chunk> chunks = chunks_of(tensors);
  std::vector<int64_t> ties(chunks.size());
  parallel_chunks(chunks, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) ties[c] = writer.write(chunks[c], false);
  });
  int64_t kept = prune_ties ? 0 : selection.equal - (zeros - selection.below);

  // Tensor by tensor, the ties are kept until `kept` is used up; the chunks to be written again are collected.
  std::vector<Chunk> again;
  for (size_t first = 0, last; first < chunks.size() && kept > 0; first = last) {
    const int64_t tensor = chunks[first].tensor;
    int64_t here = 0;
    for (last = first; last < chunks.size() && chunks[last].tensor == tensor; ++last) here += ties[last];
    if (kept < here && !tensors[tensor].is_contiguous()) {
      writer.keep_first_logical(tensor, kept);
      kept = 0;
    }
    for (size_t c = first; c < last && kept > 0; ++c) {
      if (ties[c] == 0) continue;
      if (ties[c] <= kept) {
        again.push_back(chunks[c]);
      } else {
        writer.keep_first(chunks[c], kept);
      }
      kept -= std::min(kept, ties[c]);
    }
  }
  parallel_chunks(again, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) writer.write(again[c], true);
  });
  return -1;
}

}  // namespace sparse_ops
