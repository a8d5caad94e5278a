// Keeps the wheel loadable on older systems.
//
// libstdc++'s shared_ptr reads __libc_single_threaded, which glibc has since 2.32; it would be the only symbol newer than
// 2.17. A private copy that says "several threads" costs an atomic instead of a plain add, outside every inner loop.
#include <features.h>
#if defined(__GLIBC__)
extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}
#endif
