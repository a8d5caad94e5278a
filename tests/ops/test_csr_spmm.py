"""csr_spmm against a dense product in float64, on every backend and instruction set; its gradients by gradcheck."""

import pytest
import torch
from csr import DTYPES, SHAPES, close, matrix, operand
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_ops import extension
from sparse_ops.ops.csr_spmm import csr_spmm


def check(M, K, N, density, dtype, transposed, bias=True, device="cpu"):
    dense, pattern, values = matrix(M, K, density, dtype, device=device)
    b = operand(K, N, transposed, dtype, 1, device)
    bias = operand(M, 1, True, dtype, 2, device)[0] if bias else None
    y = csr_spmm(values, *pattern.tensors(), b, transposed, bias)
    wide, rows = b.double().T if transposed else b.double(), dense.double()
    shift = 0 if bias is None else bias.double()[:, None]
    expected, magnitude = rows @ wide + shift, rows.abs() @ wide.abs() + abs(shift)
    if transposed:
        expected, magnitude = expected.T, magnitude.T
    close(y, expected, magnitude, K, dtype)
    assert y.is_contiguous()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_dense(dtype, transposed, device, backend):
    for shape in SHAPES:
        check(*shape, 0.2, dtype, transposed, device=device)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(dtype, transposed, isa):
    for M, K, N in [*SHAPES, (300, 70, 3), (18, 4000, 40)]:
        check(M, K, N, 0.1, dtype, transposed)
    for density in (0.0, 1.0):
        check(50, 64, 16, density, dtype, transposed, bias=False)


@settings(max_examples=40, deadline=None)
@given(
    M=st.integers(0, 80),
    K=st.integers(0, 80),
    N=st.integers(0, 200),
    density=st.floats(0, 1),
    transposed=st.booleans(),
)
def test_random_shapes(M, K, N, density, transposed):
    check(M, K, N, density, torch.float32, transposed)


def test_writes_every_element_and_leaves_no_trace_of_unused_lanes():
    if extension.failure() is not None:
        pytest.skip(extension.failure())
    dense, pattern, values = matrix(40, 30, 0.1, torch.float32)
    for N in (1, 3, 17, 70):
        b = torch.full((N + 2, 30), float("nan"))
        b[1:-1] = operand(30, N, True, torch.float32, 1)
        y = torch.full((N + 2, 40), float("nan"))
        extension.native().csr_spmm(values, pattern.row_offsets, pattern.columns, b[1:-1], None, True, y[1:-1])
        torch.testing.assert_close(y[1:-1], b[1:-1] @ dense.T)
        assert y[[0, -1]].isnan().all()


def test_nan_spreads_only_where_the_pattern_has_values(device, backend):
    dense, pattern, values = matrix(20, 30, 0.1, torch.float32, device=device)
    b = operand(30, 9, True, torch.float32, 1, device)
    b[4, 7] = float("nan")
    y = csr_spmm(values, *pattern.tensors(), b, True)
    assert not y[[0, 1, 2, 3, 5, 6, 7, 8]].isnan().any()
    assert y[4, dense[:, 7] != 0].isnan().all()
    if backend == "native":  # the reference multiplies zeros too
        assert not y[4, dense[:, 7] == 0].isnan().any()


@pytest.mark.parametrize("transposed", [False, True])
def test_strided_operands(transposed, device, backend):
    _, pattern, values = matrix(12, 20, 0.3, torch.float32, device=device)
    b = operand(20, 14, transposed, torch.float32, 1, device)
    expected = csr_spmm(values, *pattern.tensors(), b, transposed)
    strided = b.T.contiguous().T
    assert not strided.is_contiguous()
    assert torch.equal(csr_spmm(values, *pattern.tensors(), strided, transposed), expected)
    one = operand(20, 1, transposed, torch.float32, 1, device)
    expanded = one.expand(14, 20) if transposed else one.expand(20, 14)
    y = csr_spmm(values, *pattern.tensors(), expanded, transposed)
    torch.testing.assert_close(y, csr_spmm(values, *pattern.tensors(), one, transposed).expand_as(y))


@pytest.mark.parametrize("N", [1, 5, 64, 500])
def test_the_number_of_threads_changes_no_bit(N):
    _, pattern, values = matrix(300, 200, 0.1, torch.float32)
    b = operand(200, N, True, torch.float32, 1)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(csr_spmm(values, *pattern.tensors(), b, True))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(r, results[0]) for r in results)


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients(transposed, device, backend):
    _, pattern, values = matrix(4, 5, 0.3, torch.float64, device=device)
    b, bias = operand(5, 3, transposed, torch.float64, 1, device), operand(4, 1, True, torch.float64, 2, device)[0]
    inputs = [t.requires_grad_() for t in (values, b, bias)]

    def run(values, b, bias):
        return csr_spmm(values, *pattern.tensors(), b, transposed, bias)

    torch.autograd.gradcheck(run, inputs, fast_mode=backend == "triton")  # the interpreter takes 10 ms a call
    torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("transposed", [False, True])
def test_is_a_lawful_torch_op(transposed, device, backend):
    for M, K, N in [(5, 7, 3), (4, 6, 0)]:
        _, pattern, values = matrix(M, K, 0.3, torch.float32, device=device)
        b = operand(K, N, transposed, torch.float32, 1, device).requires_grad_()
        bias = torch.randn(M, device=device, requires_grad=True)
        args = (values.requires_grad_(), *pattern.tensors(), b, transposed)
        torch.library.opcheck(torch.ops.sparse_ops.csr_spmm.default, (*args, None))
        torch.library.opcheck(torch.ops.sparse_ops.csr_spmm.default, (*args, bias))


def test_names_the_culprit():
    _, pattern, values = matrix(5, 7, 0.3, torch.float32)
    p, b = pattern.tensors(), torch.randn(3, 7)
    cases = [
        (ValueError, r"b is \(7, 3\), expected \(N, 7\) for a sparse \(5, 7\) matrix", (values, *p, b.T, True)),
        (ValueError, r"b is \(3, 7\), expected \(7, N\)", (values, *p, b, False)),
        (ValueError, r"b is \(7,\), expected \(N, 7\)", (values, *p, b[0], True)),
        (TypeError, r"values is torch.float32, b is torch.float64", (values, *p, b.double(), True)),
        (TypeError, r"values\[0\] is torch.int64", (values.long(), *p, b, True)),
        (ValueError, r"values are \(1,\)", (values[:1], *p, b, True)),
        (ValueError, r"bias is \(4,\), expected \(5,\)", (values, *p, b, True, torch.randn(4))),
        (TypeError, r"columns is torch.int64", (values, p[0], p[1].long(), *p[2:], b, True)),
        (ValueError, r"t_columns 1", (values, *p[:3], p[3][:1], p[4], b, True)),
    ]
    for error, message, args in cases:
        with pytest.raises(error, match=message):
            csr_spmm(*args)
