"""Adversarial weights for the selection tests: ties, zeros, denormals, infinities, odd shapes, layouts and dtypes."""

import pytest
import torch
from hypothesis import strategies as st

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
KINDS = ["normal", "ties", "equal", "sparse", "denormal", "signed zero", "infinite", "any bits"]
SHAPES = [(), (0,), (1,), (7,), (3, 5), (2, 0, 3), (33, 65), (300,), (2, 3, 4, 5), (5, 1, 3, 3), (1030,)]
BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


def values(n: int, kind: str, dtype: torch.dtype, rng: torch.Generator) -> torch.Tensor:
    """n numbers without a NaN."""
    normal = torch.randn(n, generator=rng, dtype=torch.float64)
    small = torch.randint(-3, 4, (n,), generator=rng)
    match kind:
        case "ties":
            return (small / 4).to(dtype)
        case "equal":
            return torch.full((n,), -0.37, dtype=dtype) * torch.where(normal > 0, 1, -1)
        case "sparse":
            return torch.where(torch.rand(n, generator=rng) < 0.99, 0.0, normal).to(dtype)
        case "denormal":
            return small.to(BITS[dtype]).abs().view(dtype) * torch.where(normal > 0, 1, -1)
        case "signed zero":
            return torch.where(normal > 1, normal, torch.where(small > 0, 0.0, -0.0)).to(dtype)
        case "infinite":
            return torch.where(small > 1, torch.inf * normal.sign(), normal).to(dtype)
        case "any bits":
            bits = torch.randint(-(2**62), 2**62, (n,), generator=rng).to(BITS[dtype]).view(dtype)
            return torch.where(bits.isnan(), 1.0, bits)
    return normal.to(dtype)


def with_layout(t: torch.Tensor, layout: str) -> torch.Tensor:
    match layout:
        case "channels_last" if t.dim() == 4:
            return t.contiguous(memory_format=torch.channels_last)
        case "transposed" if t.dim() > 1:
            return t.transpose(0, -1).contiguous().transpose(0, -1)
        case "gaps" if t.dim() > 0:
            wide = torch.full((*t.shape[:-1], 2 * t.shape[-1]), torch.nan, dtype=t.dtype)
            wide[..., ::2] = t
            return wide[..., ::2]
        case "expanded" if t.numel() > 0:
            return t[..., :1].expand(t.shape) if t.dim() > 0 else t
    return t


@st.composite
def weight_lists(draw) -> list[torch.Tensor]:
    """One to four tensors with at least one element in all; the dtype is common in three of four lists."""
    count = draw(st.integers(1, 4))
    mixed, common = draw(st.sampled_from([False, False, False, True])), draw(st.sampled_from(DTYPES))
    kind = draw(st.sampled_from(KINDS))
    tensors = []
    for i in range(count):
        rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
        shape = draw(st.sampled_from(SHAPES if i else [s for s in SHAPES if 0 not in s]))
        t = values(torch.Size(shape).numel(), kind, draw(st.sampled_from(DTYPES)) if mixed else common, rng)
        layout = draw(st.sampled_from(["contiguous", "contiguous", "channels_last", "transposed", "gaps", "expanded"]))
        tensors.append(with_layout(t.reshape(shape), layout))
    return draw(st.permutations(tensors))


@pytest.fixture(scope="session")
def adversarial_weights():
    """The strategy: draw it with hypothesis.strategies.data()."""
    return weight_lists()


@pytest.fixture(scope="session")
def adversarial_values():
    """(kinds, values(n, kind, dtype, rng)) for tests of a size that hypothesis should not draw."""
    return KINDS, values
