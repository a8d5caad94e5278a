"""Inputs and tolerances of the device checks: adversarial values, guarded buffers, poisoned allocations."""

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from sparse_ops import launch

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
KINDS = ["normal", "ties", "equal", "sparse", "denormal", "signed zero", "infinite", "any bits"]
BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}
GUARD = 64  # elements that hold NaN before and behind a guarded tensor


@contextlib.contextmanager
def op_under_test() -> Iterator[None]:
    """Triton kernels; whatever an op allocates without filling it holds NaN, or the largest integer."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    with launch.forced("triton"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic.*")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            torch.utils.deterministic.fill_uninitialized_memory = filled


def values(n: int, kind: str, dtype: torch.dtype, seed: int, device: str) -> Tensor:
    """n numbers without a NaN, made on the CPU so that every device gets the same."""
    rng = torch.Generator().manual_seed(seed)
    normal = torch.randn(n, generator=rng, dtype=torch.float64)
    small = torch.randint(-3, 4, (n,), generator=rng)
    sign = torch.where(normal > 0, 1, -1)
    match kind:
        case "ties":
            made = small / 4
        case "equal":
            made = -0.37 * sign
        case "sparse":
            made = torch.where(torch.rand(n, generator=rng) < 0.99, 0.0, normal)
        case "denormal":
            made = small.abs().to(BITS[dtype]).view(dtype) * sign
        case "signed zero":
            made = torch.where(normal > 1, normal, torch.where(small > 0, 0.0, -0.0))
        case "infinite":
            made = torch.where(small > 1, torch.inf * normal.sign(), normal)
        case "any bits":
            bits = torch.randint(-(2**62), 2**62, (n,), generator=rng).to(BITS[dtype]).view(dtype)
            made = torch.where(bits.isnan(), 1.0, bits)
        case _:
            made = normal
    return made.to(dtype).to(device)


def randn(n: int, seed: int, dtype: torch.dtype, device: str) -> Tensor:
    return values(n, "normal", dtype, seed, device)


def guarded(t: Tensor) -> Tensor:
    """A copy of a 1-D tensor that lies 16-byte aligned between NaNs."""
    whole = torch.full((t.numel() + 2 * GUARD,), float("nan"), dtype=t.dtype, device=t.device)
    whole[GUARD : GUARD + t.numel()] = t
    return whole[GUARD : GUARD + t.numel()]


def guards_hold(t: Tensor) -> None:
    """What lies before and behind a guarded tensor is still NaN."""
    whole = t.as_strided((t.numel() + 2 * GUARD,), (1,), 0)
    assert whole[:GUARD].isnan().all() and whole[-GUARD:].isnan().all(), "written beyond the end of a tensor"


def bits(n: int, seed: int, device: str) -> Tensor:
    """A random packed mask."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, ((n + 7) // 8,), generator=rng, dtype=torch.uint8).to(device)


def unpacked(packed: Tensor, n: int) -> Tensor:
    """The first n bits as bools."""
    return ((packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1).reshape(-1)[:n] != 0


def compute_eps(dtype: torch.dtype) -> float:
    """The relative spacing of the numbers in which elements of a dtype are computed."""
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


def within(actual: Tensor, expected: Tensor, magnitude: Tensor | float, what: str, slack: float = 32.0) -> None:
    """|actual - expected| <= slack roundings of the arithmetic on numbers of `magnitude`, and one at the end."""
    info = torch.finfo(actual.dtype)
    bound = slack * compute_eps(actual.dtype) * magnitude + info.eps * expected.abs() + info.tiny * info.eps
    error = (actual.double() - expected).abs()
    worst = (error - bound).max().item() if actual.numel() else 0.0
    assert worst <= 0, f"{what}: off by {error.max().item():.3g}, {worst:.3g} more than allowed"
