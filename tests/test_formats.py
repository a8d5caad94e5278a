"""Pattern against dense matrices, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_ops import formats
from sparse_ops.formats import Pattern

SHAPES = [(0, 0), (0, 5), (5, 0), (1, 1), (3, 70), (64, 33)]


def matrix(shape, density, seed=0, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=dtype) * (torch.rand(shape, generator=rng) < density)


def assert_consistent(pattern, values, dense):
    """The pattern and its transpose both say where the nonzeros of `dense` are."""
    assert pattern.shape == tuple(dense.shape)
    assert all(t.dtype == torch.int32 and t.is_contiguous() for t in pattern.tensors())
    assert torch.equal(pattern.to_dense(values), dense)
    transposed = Pattern.from_csr(dense.shape[::-1], pattern.t_row_offsets, pattern.t_columns)
    assert torch.equal(transposed.to_dense(values[pattern.t_permutation.long()]), dense.T)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_round_trip(shape, density, device):
    dense = matrix(shape, density).to(device)
    pattern, values = Pattern.from_dense(dense)
    assert_consistent(pattern, values, dense)
    assert pattern.nnz == int(dense.count_nonzero())
    assert pattern.density == pytest.approx(pattern.nnz / max(1, dense.numel()))
    again = Pattern.from_csr(dense.shape, pattern.row_offsets, pattern.columns)
    assert all(torch.equal(a, b) for a, b in zip(again.tensors(), pattern.tensors(), strict=True))


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), density=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_random_matrices(rows, columns, density, seed):
    dense = matrix((rows, columns), density, seed)
    assert_consistent(*Pattern.from_dense(dense), dense)


@pytest.mark.parametrize("dtype", formats._COLLECTED, ids=str)
def test_the_kernels_find_what_torch_finds(dtype, monkeypatch):
    """Every element type, several threads, more rows than one piece holds; -0.0 is a zero."""
    dense = (4 * matrix((700, 300), 0.1)).to(dtype)
    if dtype.is_floating_point:
        dense[0, :3] = torch.tensor([-0.0, float("nan"), float("-inf")])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        pattern, values = Pattern.from_dense(dense)
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(formats.extension, "failure", lambda: "not built")
    expected, plain = Pattern.from_dense(dense)
    assert all(torch.equal(a, b) for a, b in zip(pattern.tensors(), expected.tensors(), strict=True))
    torch.testing.assert_close(values, plain, rtol=0, atol=0, equal_nan=True)
    assert values.dtype == dtype and values.data_ptr() != dense.data_ptr()


def test_zeros_nan_and_memory_order():
    weight = torch.tensor([[0.0, -0.0, float("nan")], [1.0, 0.0, -2.0]])
    pattern, values = Pattern.from_dense(weight)
    assert pattern.columns.tolist() == [2, 0, 2]
    assert values.isnan().tolist() == [True, False, False]
    conv = matrix((4, 27), 0.3).view(4, 3, 3, 3)
    logical, _ = Pattern.from_dense(conv)
    stored, values = Pattern.from_dense(conv.to(memory_format=torch.channels_last))
    assert torch.equal(logical.columns, stored.columns)
    assert torch.equal(stored.to_dense(values).view(4, 3, 3, 3), conv)


def test_to_dense_is_differentiable():
    pattern, values = Pattern.from_dense(matrix((5, 7), 0.4, dtype=torch.float64))
    weight = torch.randn(5, 7, dtype=torch.float64)
    (pattern.to_dense(values.requires_grad_()) * weight).sum().backward()
    assert torch.equal(values.grad, pattern.gather(weight))


@pytest.mark.parametrize(
    "shape, row_offsets, columns, message",
    [
        ((2, 3), [0, 1], [0], "row_offsets has 2 entries, expected 3 for 2 rows"),
        ((2, 3), [1, 1, 2], [0, 1], "begins and ends with 1 and 2, expected 0 and 2"),
        ((2, 3), [0, 1, 3], [0, 1], "begins and ends with 0 and 3, expected 0 and 2"),
        ((2, 3), [0, 2, 1], [0], r"row_offsets falls from 2 to 1 at row 1"),
        ((2, 3), [0, 1, 2], [0, 3], r"columns\[1\] is 3, expected 0 to 2"),
        ((2, 3), [0, 1, 2], [-1, 1], r"columns\[0\] is -1, expected 0 to 2"),
        ((2, 3), [0, 2, 2], [1, 1], r"columns\[0\] is 1 and columns\[1\] is 1, expected them to increase within row 0"),
        ((2, 3), [0, 2, 2], [2, 0], "increase within row 0"),
        ((2, -3), [0, 0, 0], [], r"the shape is \(2, -3\)"),
        ((2,), [0, 0, 0], [], r"the shape is \(2,\)"),
        ((2, 3), [[0, 0, 0]], [], r"row_offsets is torch.int64 \(1, 3\), expected a 1-D integer tensor"),
    ],
)
def test_refuses_what_is_no_pattern(shape, row_offsets, columns, message):
    with pytest.raises(ValueError, match=message):
        Pattern.from_csr(shape, torch.tensor(row_offsets), torch.tensor(columns, dtype=torch.int64))


def test_refuses_foreign_dtypes_and_shapes():
    with pytest.raises(ValueError, match=r"columns is torch.float32"):
        Pattern.from_csr((1, 3), torch.tensor([0, 1]), torch.tensor([0.0]))
    with pytest.raises(ValueError, match=r"two dimensions or more, got \(3,\)"):
        Pattern.from_mask(torch.ones(3))
    pattern = Pattern.from_mask(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"values are \(5,\), expected \(6,\)"):
        pattern.to_dense(torch.ones(5))
    with pytest.raises(ValueError, match=r"the tensor is \(3, 2\), the pattern \(2, 3\)"):
        pattern.gather(torch.ones(3, 2))
