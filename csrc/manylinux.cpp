// Keeps the wheel loadable on older systems.
//
// libstdc++'s shared_ptr reads __libc_single_threaded, which glibc has since 2.32; everything else needs 2.29 (the tag
// manylinux_2_31). A private copy that says "several threads" costs an atomic instead of a plain add, outside every
// inner loop.
#include <features.h>
#if defined(__GLIBC__)
extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}
#endif
