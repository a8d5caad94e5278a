// Compiles one body three times, in the namespaces scalar, avx2 and avx512 of sparse_ops.
//
//     #define SPARSE_OPS_BODY "cpu/stem_body.h"
//     #include "../foreach_isa.h"
//     ... SPARSE_OPS_DISPATCH(function)(arguments) ...
//
// A body uses intrinsics and plain loops only, nothing from torch or the standard library: code compiled for AVX-512
// must not escape through an inline function that the linker keeps once for all. Inside a body exactly one of
// SPARSE_OPS_AVX512, SPARSE_OPS_AVX2 and SPARSE_OPS_SCALAR is 1.

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define SPARSE_OPS_SCALAR 1
#define SPARSE_OPS_AVX2 0
#define SPARSE_OPS_AVX512 0
namespace sparse_ops {
namespace scalar {
#include SPARSE_OPS_BODY
}
}  // namespace sparse_ops
#undef SPARSE_OPS_SCALAR
#undef SPARSE_OPS_AVX2

#if defined(__x86_64__)
#define SPARSE_OPS_SCALAR 0
#define SPARSE_OPS_AVX2 1
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace sparse_ops {
namespace avx2 {
#include SPARSE_OPS_BODY
}
}  // namespace sparse_ops
#pragma GCC pop_options
#undef SPARSE_OPS_AVX2
#undef SPARSE_OPS_AVX512

#define SPARSE_OPS_AVX2 0
#define SPARSE_OPS_AVX512 1
#pragma GCC push_options
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // gcc 12 warns of its own _mm512_undefined_ps
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
namespace sparse_ops {
namespace avx512 {
#include SPARSE_OPS_BODY
}
}  // namespace sparse_ops
#pragma GCC diagnostic pop
#pragma GCC pop_options
#define SPARSE_OPS_DISPATCH(f) (isa() >= Isa::avx512 ? avx512::f : isa() == Isa::avx2 ? avx2::f : scalar::f)
#else
#define SPARSE_OPS_DISPATCH(f) (scalar::f)
#endif
