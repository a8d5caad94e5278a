#!/bin/sh
# Builds the C++ kernels with AddressSanitizer and UndefinedBehaviourSanitizer beside the others, in build/sanitize, and
# runs tests on them: those of the ops, or those that are named. Any finding stops its test process.
set -eu
dir=build/sanitize
checks="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
SPARSE_OPS_CXXFLAGS="$checks -O1 -g1" LDFLAGS="$checks" \
    "$PYTHON" setup.py -q build_ext --build-lib $dir/lib --build-temp $dir/temp
for file in sparse_ops/*; do
    case $file in *_C.abi3.so | *__pycache__) ;; *) ln -sfn "$PWD/$file" $dir/lib/sparse_ops/ ;; esac
done
# The runtimes come first, also before libstdc++, whose exceptions they watch. Leaks are not looked for: Python and torch
# keep memory for good. The working directory, whose package has the other kernels, is not searched for modules.
export LD_PRELOAD="$(cc -print-file-name=libasan.so) $(cc -print-file-name=libubsan.so) $(cc -print-file-name=libstdc++.so.6)"
export ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=2
export PYTHONPATH="$PWD/$dir/lib" PYTHONSAFEPATH=1
"$PYTHON" - <<'END'
import sys
from sparse_ops import extension
sys.exit(extension.failure() or ("build/sanitize" not in str(extension.PATH) and f"not the kernels: {extension.PATH}"))
END
"$PYTHON" -m pytest -q -p no:cacheprovider "${@:-tests/ops}"
