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

  // Packs a chunk; returns how many of its elements equal the threshold.
  int64_t write(const Chunk& chunk, bool keep_equal) const { return write(chunk, keep_equal, mask(chunk)); }

  // Keeps the first `kept` elements that equal the threshold, in the storage order of a chunk that was written without.
  void keep_first(const Chunk& chunk, int64_t kept) const {
    std::vector<uint8_t> ties((chunk.count + 7) / 8);
    find_ties(chunk, ties.data());
    uint8_t* to = mask(chunk);
    for (size_t i = 0; kept > 0; ++i)
      for (int bit = 0; bit < 8 && kept > 0; ++bit)
        if (ties[i] >> bit & 1) {
          to[i] |= static_cast<uint8_t>(1 << bit);
          --kept;
        }
  }

  // The same in the logical order of a whole tensor whose chunks were written without.
  void keep_first_logical(const std::vector<Chunk>& chunks, int64_t kept) const {
    const Tensor& t = tensors_[chunks[0].tensor];
    std::vector<uint8_t> ties((t.numel() + 7) / 8);
    parallel_chunks(chunks, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) find_ties(chunks[c], ties.data() + chunks[c].first / 8);
    });
    uint8_t* to = mask(chunks[0]);
    const int64_t dims = t.dim(), inner = t.size(dims - 1), step = t.stride(dims - 1);
    std::vector<int64_t> index(dims);
    for (int64_t row = 0;;) {
      for (int64_t i = 0, at = row; i < inner; ++i, at += step) {
        const int tie = ties[at >> 3] >> (at & 7) & 1;
        if (tie == 0) continue;
        to[at >> 3] |= static_cast<uint8_t>(1 << (at & 7));
        if (--kept == 0) return;
      }
      for (int64_t d = dims - 2;; --d) {
        row += t.stride(d);
        if (++index[d] < t.size(d)) break;
        row -= t.stride(d) * index[d];
        index[d] = 0;
      }
    }
  }

 private:
  uint8_t* mask(const Chunk& chunk) const {
    return static_cast<uint8_t*>(masks_[chunk.tensor].mutable_data_ptr()) + chunk.first / 8;
  }

  int64_t write(const Chunk& chunk, bool keep_equal, uint8_t* to) const {
    const Tensor& t = tensors_[chunk.tensor];
    const Float type = float_type(t.scalar_type());
    const char* data = static_cast<const char*>(t.const_data_ptr()) + chunk.first * size_of(type);
    return SPARSE_OPS_DISPATCH(pack_mask)(data, type, promoted_, chunk.count, threshold_, keep_equal, to);
  }

  // One bit an element, set where it equals the threshold: what (key >= threshold) has and the written mask has not.
  void find_ties(const Chunk& chunk, uint8_t* ties) const {
    write(chunk, true, ties);
    const uint8_t* written = mask(chunk);
    for (int64_t i = 0; i < (chunk.count + 7) / 8; ++i) ties[i] ^= written[i];
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
    for (const Tensor& mask : masks)
      if (mask.numel() > 0) std::memset(mask.mutable_data_ptr(), 0xff, mask.numel());
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
      writer.keep_first_logical({chunks.begin() + first, chunks.begin() + last}, kept);
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
