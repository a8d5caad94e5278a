"""Fixtures for all tests; without a GPU the Triton kernels run in Triton's interpreter on CPU tensors."""

import os

import numpy as np
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before any kernel is decorated
    np.seterr(invalid="ignore", over="ignore", divide="ignore")  # the interpreter computes with numpy; a GPU is silent

import pytest

from sparse_ops import extension, launch

BACKENDS = ["native", "triton", "reference"]


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=BACKENDS)
def backend(request, device):
    """Each backend that this machine can run, forced for the duration of a test."""
    if request.param == "native" and (extension.failure() is not None or device.type != "cpu"):
        pytest.skip(f"no C++ kernels for {device}")
    if request.param == "triton":
        pytest.importorskip("triton")
    with launch.forced(request.param):
        yield request.param


@pytest.fixture(params=["avx512_bf16", "avx512", "avx2", "scalar"])
def isa(request):
    """Each instruction set that this processor has, forced for the duration of a test of the native kernels."""
    if extension.failure() is not None:
        pytest.skip(extension.failure())
    native = extension.native()
    try:
        native.set_isa(request.param)
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    with launch.forced("native"):
        yield request.param
    native.set_isa("")
