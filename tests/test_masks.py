"""Packed masks, budgets, and the public magnitude_mask."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sparse_ops
from sparse_ops.masks import PackedMask, budget, keep_largest, layer_zeros, magnitude_mask, raised

SHAPES = [(64, 3, 7, 7), (64, 64, 3, 3), (128, 64, 1, 1), (256, 128, 3, 3), (10, 256), (5,)]
shapes = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=6)
sparsities = st.floats(0, 1, exclude_max=True)


def weights(device="cpu"):
    rng = torch.Generator().manual_seed(0)
    return [(torch.randn(s, generator=rng) * (i + 1)).to(device) for i, s in enumerate(SHAPES)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
def test_packing_and_unpacking(layout, dtype, device):
    mask = (torch.rand(3, 5, 2, 7, device=device) < 0.4).to(dtype).to(memory_format=layout)
    packed = PackedMask.from_dense(mask)
    assert packed.bits.shape == (27,) and packed.bits[-1] >= 0b11111100
    assert packed.to_dense().stride() == mask.stride()
    assert torch.equal(packed.to_dense(), mask.bool())
    assert (packed.numel, packed.zeros) == (210, int((mask == 0).sum()))
    wide = (torch.rand(4, 6, device=device) < 0.5)[:, ::2]
    assert torch.equal(PackedMask.from_dense(wide).to_dense(), wide)
    assert PackedMask.from_dense(torch.ones(0, 3, device=device)).to_dense().shape == (0, 3)


def test_a_mask_travels(device):
    mask = PackedMask.from_dense(torch.rand(3, 5, device=device) < 0.4)
    for other in (copy.deepcopy(mask), pickle.loads(pickle.dumps(mask))):
        assert torch.equal(other.bits, mask.bits) and other.shape == mask.shape and other.stride == mask.stride
    with pytest.raises(ValueError, match=r"bits are torch.uint8 \(2,\), expected uint8 \(1,\) for shape \(2, 3\)"):
        PackedMask(torch.zeros(2, dtype=torch.uint8), torch.Size((2, 3)), (3, 1))


def test_masks_are_in_storage_order_for_apply_masks(device):
    from sparse_ops.ops.apply_masks import apply_masks_

    w = torch.randn(4, 3, 5, 5, device=device).to(memory_format=torch.channels_last)
    (mask,) = magnitude_mask([w], 0.9)
    expected = torch.where(mask.to_dense(), w, 0.0)
    apply_masks_([w], [mask.bits])
    assert torch.equal(w, expected) and int((w == 0).sum()) == 270


def test_budgets():
    assert [budget(10, 0.25, c) for c in ("nearest", "floor", "ceil", "art")] == [3, 2, 3, 3]
    assert [budget(6, 0.25, c) for c in ("nearest", "floor", "ceil", "art")] == [2, 1, 2, 2]
    assert [budget(8, 0.5, c) for c in ("nearest", "floor", "ceil", "art")] == [4, 4, 4, 5]
    assert budget(7, 0.0, "art") == budget(0, 0.5) == 0
    assert budget(3, math.nextafter(1, 0), "art") == 3
    assert budget(25_000_000, 0.98) == 24_500_000


@settings(max_examples=500, deadline=None, derandomize=True)
@given(shapes=shapes, sparsity=sparsities, scope=st.sampled_from(["uniform", "erk"]))
def test_layer_budgets_add_up(shapes, sparsity, scope):
    sizes = [math.prod(s) for s in shapes]
    zeros = layer_zeros(shapes, sparsity, scope)
    assert sum(zeros) == budget(sum(sizes), sparsity)
    assert all(0 <= z <= n for z, n in zip(zeros, sizes, strict=True))
    if scope == "uniform":
        assert all(abs(z - sparsity * n) < 2 for z, n in zip(zeros, sizes, strict=True))


@settings(max_examples=500, deadline=None, derandomize=True)
@given(shapes=shapes, sparsity=sparsities)
def test_erk_densities_have_one_common_factor(shapes, sparsity):
    """density * product / sum is the same in every layer that is not dense, and not larger in the dense ones."""
    zeros = layer_zeros(shapes, sparsity, "erk")
    sizes = [math.prod(s) for s in shapes]
    kept = [n - z for z, n in zip(zeros, sizes, strict=True)]
    # rounding moves a layer by less than one weight, hence its factor by less than 1 / sum(shape)
    low = [max(0, k - 1) / sum(s) for k, s in zip(kept, shapes, strict=True)]
    high = [(k + 1) / sum(s) if k < n else math.inf for k, n, s in zip(kept, sizes, shapes, strict=True)]
    assert max(low) <= min(high) + 1e-9


@settings(max_examples=300, deadline=None, derandomize=True)
@given(shapes=shapes, sparsity=sparsities, keep=st.integers(0, 5), scope=st.sampled_from(["uniform", "erk"]))
def test_min_nonzeros_keeps_layers_alive(shapes, sparsity, keep, scope):
    sizes = [math.prod(s) for s in shapes]
    total = budget(sum(sizes), sparsity)
    if sum(sizes) - total < sum(min(keep, n) for n in sizes):
        with pytest.raises(ValueError, match=f"min_nonzeros is {keep}, but the budget leaves"):
            layer_zeros(shapes, sparsity, scope, min_nonzeros=keep)
        return
    zeros = layer_zeros(shapes, sparsity, scope, min_nonzeros=keep)
    assert sum(zeros) == total
    assert all(n - z >= min(keep, n) for z, n in zip(zeros, sizes, strict=True))


@given(values=st.lists(st.integers(-4, 4), max_size=40), share=st.floats(0, 1))
def test_keep_largest_keeps_the_first_of_equals(values, share):
    kept = round(share * len(values))
    found = keep_largest(torch.tensor(values, dtype=torch.float32), kept)
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    assert found.dtype == torch.bool and found.nonzero().flatten().tolist() == sorted(order[:kept])


def test_keep_largest_of_any_layout_and_its_errors():
    scores = torch.randn(3, 4, 2, 2).to(memory_format=torch.channels_last)
    found = keep_largest(scores, 7)
    assert torch.equal(found, scores.abs() >= scores.abs().flatten().topk(7).values[-1])
    for kept in (-1, 49):
        with pytest.raises(ValueError, match=f"kept is {kept}, expected 0 to 48"):
            keep_largest(scores, kept)
    with pytest.raises(ValueError, match="holds a NaN"):
        keep_largest(torch.tensor([1.0, float("nan")]), 1)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.98])
@pytest.mark.parametrize("scope", ["global", "uniform", "erk"])
def test_masks_of_every_scope(scope, sparsity, device):
    ws = weights(device)
    masks = magnitude_mask(ws, sparsity, scope)
    assert sum(m.zeros for m in masks) == budget(sum(w.numel() for w in ws), sparsity)
    for w, m in zip(ws, masks, strict=True):
        keep = m.to_dense()
        if 0 < m.zeros < m.numel:
            assert w.abs()[~keep].max() <= w.abs()[keep].min()
    if scope != "global":
        assert [m.zeros for m in masks] == layer_zeros(SHAPES, sparsity, scope)
    elif sparsity:
        assert max(w.abs()[~m.to_dense()].max() for w, m in zip(ws, masks, strict=True) if m.zeros) <= min(
            w.abs()[m.to_dense()].min() for w, m in zip(ws, masks, strict=True) if m.zeros < m.numel
        )


def test_a_global_budget_can_keep_layers_alive(device):
    ws = [torch.full((3, 3), 0.01, device=device), torch.rand(40, 10, device=device) + 1, torch.ones(2, device=device)]
    assert magnitude_mask(ws, 0.9)[0].zeros == 9
    masks = magnitude_mask(ws, 0.9, min_nonzeros=2)
    assert [m.numel - m.zeros for m in masks] == [2, 37, 2]
    assert torch.equal(masks[0].to_dense().flatten().nonzero().flatten().cpu(), torch.tensor([0, 1]))


def test_a_sparsity_per_tensor(device):
    masks = magnitude_mask(weights(device), [0.0, 0.5, 0.9, 0.98, 0.1, 0.2])
    sizes = [math.prod(s) for s in SHAPES]
    wanted = [budget(n, s) for n, s in zip(sizes, [0.0, 0.5, 0.9, 0.98, 0.1, 0.2], strict=True)]
    assert [m.zeros for m in masks] == wanted


def test_the_authors_rule_prunes_all_ties(device):
    w = torch.tensor([3.0, 1.0, -1.0, 1.0, 2.0, 0.5], device=device)
    assert magnitude_mask([w], 0.3)[0].zeros == 2
    (mask,) = magnitude_mask([w], 0.3, count="art")
    a = w.abs().sort().values[math.floor(0.3 * 6)]
    assert torch.equal(mask.to_dense(), w.abs() > a)


def test_public_names_and_errors(device):
    w = [torch.randn(4, device=device), torch.full((2, 2), torch.nan, device=device)]
    assert sparse_ops.magnitude_mask is magnitude_mask
    for sparsity in (1.0, -0.5, math.nan):
        with pytest.raises(ValueError, match=f"sparsity is {sparsity}"):
            magnitude_mask(w, sparsity)
    with pytest.raises(TypeError, match=r"sparsity is '0\.5'"):
        magnitude_mask(w, "0.5")
    with pytest.raises(ValueError, match=r"sparsity\[1\] is 2"):
        magnitude_mask(w, [0.5, 2])
    with pytest.raises(ValueError, match="1 sparsities for 2 tensors"):
        magnitude_mask(w, [0.5])
    with pytest.raises(ValueError, match="scope is 'layer'"):
        magnitude_mask(w, 0.5, scope="layer")
    with pytest.raises(ValueError, match="count is 'round'"):
        magnitude_mask(w, 0.5, count="round")
    with pytest.raises(ValueError, match="min_nonzeros is -1"):
        magnitude_mask(w[:1], 0.5, min_nonzeros=-1)
    for scope in ("global", "uniform", "erk"):
        with pytest.raises(ValueError, match=r"tensors\[1\], of shape \(2, 2\), holds a NaN"):
            magnitude_mask(w, 0.5, scope)
        with pytest.raises(ValueError, match="1 tensors without a single element"):
            magnitude_mask([w[0][:0]], 0.5, scope)


def test_raised_by_hand():
    assert raised([3, 0, 0, 1, 3, 1], [2, 0, 1, 1, 2, 1]) == [3, 0, 1, 1, 2, 1]  # of equals the last gives
    assert raised([9, 1, 5], [2, 4, 4]) == [6, 4, 5]
    assert raised([1, 2], [1, 1]) == [1, 2] and raised([1, 1], [2, 2]) == [2, 2]
