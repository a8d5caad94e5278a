"""apply_masks_ against torch.where on every backend and instruction set."""

import pytest
import torch

from sparse_ops.ops.apply_masks import apply_masks_

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SIZES = [0, 1, 7, 16, 63, 5000]


def problem(n, dtype, device):
    rng = torch.Generator().manual_seed(n)
    t = torch.randn(n, generator=rng).to(device, dtype)
    bits = torch.randint(0, 256, ((n + 7) // 8,), generator=rng, dtype=torch.uint8).to(device)
    keep = ((bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=device)) & 1).flatten()[:n].bool()
    return t, bits, keep


def check(n, dtype, device):
    t, bits, keep = problem(n, dtype, device)
    t = torch.where(keep, t, float("nan"))  # what is pruned may hold anything; a product would keep the NaN
    version = t._version
    expected = torch.where(keep, t, 0.0)
    apply_masks_([t], [bits])
    assert torch.equal(t, expected)
    assert not torch.signbit(t[~keep]).any()
    assert t._version > version


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_zeroes_exactly_the_pruned(n, dtype, device, backend):
    check(n, dtype, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [*SIZES, 200_001])
def test_every_instruction_set(n, dtype, isa):
    check(n, dtype, torch.device("cpu"))


def test_storage_order_of_channels_last(device, backend):
    t = torch.randn(4, 3, 5, 5, device=device).to(memory_format=torch.channels_last)
    _, bits, keep = problem(t.numel(), torch.float32, device)
    expected = torch.where(keep.view(4, 5, 5, 3).permute(0, 3, 1, 2), t, 0.0)
    apply_masks_([t], [bits])
    assert torch.equal(t, expected)


def test_is_a_lawful_torch_op(device, backend):
    t, bits, _ = problem(100, torch.float32, device)
    torch.library.opcheck(torch.ops.sparse_ops.apply_masks_.default, ([t], [bits]))


def test_names_the_culprit(device):
    with pytest.raises(ValueError, match=r"masks\[0\] is torch.uint8 \(2,\), expected uint8 \(1,\)"):
        apply_masks_([torch.randn(3, device=device)], [torch.zeros(2, dtype=torch.uint8, device=device)])
    with pytest.raises(ValueError, match="gaps or overlaps"):
        apply_masks_([torch.randn(4, 4, device=device)[:, ::2]], [torch.zeros(1, dtype=torch.uint8, device=device)])
    with pytest.raises(TypeError, match="int64"):
        apply_masks_([torch.arange(8, device=device)], [torch.zeros(1, dtype=torch.uint8, device=device)])
