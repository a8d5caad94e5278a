// Work memory of a thread, kept between calls: fresh pages would cost more than the work of a small layer.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sparse_ops {

// `bytes` of this thread's memory for one purpose (slot), aligned to a cache line, contents undefined. Valid until the
// thread asks for the same slot again.
template <int Slot>
void* scratch(size_t bytes) {
  constexpr size_t kPage = size_t{2} << 20;
  struct Memory {
    void* data = nullptr;
    size_t bytes = 0;
    ~Memory() { std::free(data); }
  };
  thread_local Memory memory;
  if (memory.bytes < bytes) {
    std::free(memory.data);
    memory.bytes = 0;
    const size_t unit = bytes < kPage / 8 ? 4096 : kPage, rounded = (bytes + unit - 1) / unit * unit;
    memory.data = std::aligned_alloc(unit, rounded);
    if (memory.data == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    if (unit == kPage) madvise(memory.data, rounded, MADV_HUGEPAGE);
#endif
    memory.bytes = rounded;
  }
  return memory.data;
}

}  // namespace sparse_ops
