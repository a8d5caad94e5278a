"""Builds the stable-ABI extension sparse_ops/_C.abi3.so; everything declarative is in pyproject.toml."""

import os
import sys
from pathlib import Path

from setuptools import setup

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:
    print(
        "sparse_ops: torch is not importable, so the C++ kernels are not built and the slower reference path will be "
        "used. Install torch first, then: pip install --no-build-isolation .",
        file=sys.stderr,
    )
    setup()
    sys.exit()

# torch 2.11 is the oldest release whose stable ABI has every call used here; Python 3.11 is the oldest supported.
FLAGS = [
    "-O3",
    "-g0",
    "-std=c++17",
    "-fvisibility=hidden",
    "-Wall",
    "-DTORCH_STABLE_ONLY",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    *os.environ.get("SPARSE_OPS_CXXFLAGS", "").split(),
]

extension = CppExtension(
    "sparse_ops._C",
    sorted(str(path) for path in Path("csrc").rglob("*.cpp")),
    depends=sorted(str(path) for path in Path("csrc").rglob("*.h")),
    extra_compile_args={"cxx": FLAGS},
    py_limited_api=True,
    optional=True,  # no compiler: the package still installs and says at first use what is slower
)
setup(
    ext_modules=[extension],
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
