// Cuts a list of tensors into chunks of fixed size, so that results do not depend on the number of threads.
#pragma once

#include <vector>

#include "../common.h"

namespace sparse_ops {

// A multiple of eight: a chunk of any tensor starts on a byte of its packed mask.
constexpr int64_t kChunkSize = 1 << 16;

struct Chunk {
  int64_t tensor, first, count;
};

inline std::vector<Chunk> chunks_of(const Tensors& tensors) {
  std::vector<Chunk> chunks;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t n = tensors[i].numel();
    for (int64_t first = 0; first < n; first += kChunkSize)
      chunks.push_back({static_cast<int64_t>(i), first, n - first < kChunkSize ? n - first : kChunkSize});
  }
  return chunks;
}

// f(begin, end) over pieces of the chunks; a thread is woken only for at least half a chunk's worth of elements.
template <typename F>
void parallel_chunks(const std::vector<Chunk>& chunks, const F& f) {
  int64_t elements = 0;
  for (const Chunk& chunk : chunks) elements += chunk.count;
  const auto count = static_cast<int64_t>(chunks.size());
  const int64_t grain = elements == 0 ? 1 : (count * (kChunkSize / 2) + elements - 1) / elements;
  parallel(0, count, grain, f);
}

}  // namespace sparse_ops
