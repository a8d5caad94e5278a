// Work memory of a thread, kept between calls: fresh pages would cost more than the work of a small layer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sparse_ops {

// `bytes` of this thread's memory for one purpose (slot), aligned to a cache line, contents undefined. Valid until the
// thread asks for the same slot again.
template <int Slot>
void* scratch(size_t bytes) {
  constexpr size_t kLine = 64;
  thread_local std::vector<unsigned char> memory;
  if (memory.size() < bytes + kLine) memory = std::vector<unsigned char>(bytes + kLine);
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  return reinterpret_cast<void*>((address + kLine - 1) / kLine * kLine);
}

}  // namespace sparse_ops
