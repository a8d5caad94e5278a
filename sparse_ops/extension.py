"""Loads the C++ kernels (_C.abi3.so) once and says why where there are none."""

import functools
import platform
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

PATH = Path(__file__).with_name("_C.abi3.so")


@functools.cache
def failure() -> str | None:
    """None when the C++ kernels are loaded, else one sentence saying why they are not."""
    if not PATH.exists():
        return f"{PATH.name} was not built for {platform.system()} {platform.machine()}"
    try:
        torch.ops.load_library(PATH)
    except OSError as error:
        return f"{PATH.name} does not load: {error}"
    return None


@functools.cache
def warn_reference_path() -> None:
    """Say once that the plain PyTorch path runs, what it costs and how to get the C++ kernels."""
    warnings.warn(
        f"sparse_ops runs on its plain PyTorch path, since {failure()}: results are the same, training steps cost "
        "several passes over the weights and sparse layers are slower than dense ones. With a C++ compiler, "
        "`pip install --no-build-isolation --force-reinstall --no-deps sparse_ops` builds the kernels.",
        stacklevel=2,
    )


def native() -> ModuleType | Any:
    """The namespace of the C++ kernels, torch.ops._sparse_ops_C; they take checked buffers and allocate nothing."""
    if (reason := failure()) is not None:
        raise RuntimeError(f"sparse_ops: the C++ kernels are not available, since {reason}")
    return torch.ops._sparse_ops_C
