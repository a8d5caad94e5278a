"""Which implementation of an op runs: pure choices, no tensors are touched here."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from sparse_ops import extension

Backend = Literal["native", "triton", "reference"]
_forced: list[Backend] = []
_environment = os.environ.get("SPARSE_OPS_FORCE_BACKEND")  # at import: reading it takes 1 us
_PLAIN = frozenset((Tensor, nn.Parameter))


def backend(device: torch.device) -> Backend:
    """native (C++) for the CPU, triton for CUDA, and the plain PyTorch reference elsewhere or where C++ was not built.

    The environment variable SPARSE_OPS_FORCE_BACKEND, read when the package is imported, or the context manager
    `forced` overrides the choice; "triton" on a CPU tensor needs Triton's interpreter (TRITON_INTERPRET=1).
    """
    name = _forced[-1] if _forced else _environment
    if name is not None:
        if name not in get_args(Backend):
            raise ValueError(f"SPARSE_OPS_FORCE_BACKEND is {name!r}; it may be one of {', '.join(get_args(Backend))}")
        return name  # type: ignore[return-value]
    if device.type == "cuda":
        return "triton"
    if device.type == "cpu":
        if extension.failure() is None:
            return "native"
        extension.warn_reference_path()
    return "reference"


def on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Launches inside the `with` go to this device, which need not be the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def forced(name: Backend) -> Iterator[None]:
    """Run every op inside the `with` on one backend; for tests and benchmarks."""
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def unseen(tensors: Sequence[Tensor]) -> bool:
    """True where nobody watches the dispatcher, so that an op without autograd may be called as a plain function.

    Handing lists of tensors to the dispatcher and back costs 0.3 us a tensor. A compiler, a dispatch mode, a functional
    transform, autograd of either mode and tensor subclasses have to see the op.
    """
    return not torch.is_grad_enabled() and _unwatched(tensors)


def undispatched(tensors: Sequence[Tensor]) -> bool:
    """`unseen` but for autograd, for a differentiable op on CPU or CUDA tensors: `ops.direct` has the autograd then.

    A batch of gradients that autograd hands to a backward pass as one (`is_grads_batched=True`) looks like a tensor of
    a single gradient's shape: the dispatcher alone knows what to do with it.
    """
    return (
        tensors[0].device.type in ("cpu", "cuda")
        and _unwatched(tensors)
        and not any(map(torch._C._functorch.is_legacy_batchedtensor, tensors))
    )


def _unwatched(tensors: Sequence[Tensor]) -> bool:
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or not _PLAIN.issuperset(map(type, tensors))
    )


def direct() -> bool:
    """True where an op on plain CPU tensors may be one call of C++: as `unseen`, and the backend is C++."""
    name = _forced[-1] if _forced else _environment
    return (
        (name is None or name == "native")
        and extension.failure() is None
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
    )


def transformed() -> bool:
    """True inside a transform of torch.func or a level of forward-mode AD: `ops.transforms` has the rules for them."""
    return _transforms()


def _transforms() -> bool:
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


# torch.compile enters the levels that it sees as it traces, so that it may ask then and take the answer as a constant.
# This is what torch.compiler.assume_constant_result does, whose import takes a second.
_transforms._dynamo_marked_constant = True  # type: ignore[attr-defined]


def isa() -> str:
    """The instruction set of the C++ kernels here, "reference" where they were not built."""
    return extension.native().isa() if extension.failure() is None else "reference"
