// Chooses the instruction set at run time.
#include <atomic>
#include <cstdlib>

#include "common.h"

namespace sparse_ops {
namespace {

constexpr int kUnset = -1;
std::atomic<int> chosen{kUnset};

Isa best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return __builtin_cpu_supports("avx512bf16") ? Isa::avx512_bf16 : Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    return Isa::avx2;
#endif
  return Isa::scalar;
}

Isa parse(const std::string& name) {
  const Isa most = best();
  Isa wanted = most;
  if (name == "scalar") {
    wanted = Isa::scalar;
  } else if (name == "avx2") {
    wanted = Isa::avx2;
  } else if (name == "avx512") {
    wanted = Isa::avx512;
  } else if (name == "avx512_bf16") {
    wanted = Isa::avx512_bf16;
  } else {
    STD_TORCH_CHECK(name.empty(), "SPARSE_OPS_CPU_ISA is '", name, "'; it may be scalar, avx2, avx512 or avx512_bf16");
  }
  STD_TORCH_CHECK(wanted <= most, "SPARSE_OPS_CPU_ISA asks for ", name, ", which this processor does not have");
  return wanted;
}

}  // namespace

Isa isa() {
  int value = chosen.load(std::memory_order_relaxed);
  if (value == kUnset) {
    const char* name = std::getenv("SPARSE_OPS_CPU_ISA");
    value = static_cast<int>(parse(name == nullptr ? "" : name));
    chosen.store(value, std::memory_order_relaxed);
  }
  return static_cast<Isa>(value);
}

std::string isa_name() {
  switch (isa()) {
    case Isa::avx512_bf16: return "avx512_bf16";
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "scalar";
  }
}

void set_isa(const std::string& name) {
  chosen.store(name.empty() ? kUnset : static_cast<int>(parse(name)), std::memory_order_relaxed);
}

}  // namespace sparse_ops
