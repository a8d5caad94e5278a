"""csr_sddmm against a dense product in float64, on every backend and instruction set; its gradients by gradcheck."""

import itertools

import pytest
import torch
from csr import DTYPES, SHAPES, bits_by_threads, close, matrix, operand
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_ops import extension
from sparse_ops.formats import Pattern
from sparse_ops.ops.csr_sddmm import csr_sddmm


def check(M, K, N, density, dtype, transposed, device="cpu"):
    _, pattern, _ = matrix(M, K, density, dtype, device=device)
    dy, b = (operand(rows, N, transposed, dtype, rows, device) for rows in (M, K))
    dvalues = csr_sddmm(dy, b, *pattern.tensors(), transposed)
    left, right = (t.double().T if transposed else t.double() for t in (dy, b))
    close(dvalues, pattern.gather(left @ right.T), pattern.gather(left.abs() @ right.T.abs()), N, dtype)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_dense(dtype, transposed, device, backend):
    for shape in SHAPES:
        check(*shape, 0.2, dtype, transposed, device=device)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(dtype, transposed, isa):
    for M, K, N in [*SHAPES, (300, 20, 3), (10, 4000, 40), (8, 12, 1500)]:
        check(M, K, N, 0.1, dtype, transposed)
    for density in (0.0, 1.0):
        check(50, 64, 16, density, dtype, transposed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operands_of_either_layout(dtype, isa):
    for M, K, N in [(21, 33, 2), (70, 90, 64), (66, 30, 200)]:
        _, pattern, _ = matrix(M, K, 0.2, dtype)
        dy, b = (operand(rows, N, True, dtype, rows) for rows in (M, K))
        expected = csr_sddmm(dy, b, *pattern.tensors(), True)
        for left in (dy, dy.t().contiguous().t()):
            for right in (b, b.t().contiguous().t()):
                assert torch.equal(csr_sddmm(left, right, *pattern.tensors(), True), expected)


@pytest.mark.parametrize("transposed", [False, True])
def test_blocks_of_columns_on_every_instruction_set(transposed, isa):
    """Several blocks and runs of rows, rows without a nonzero in some, tiles that are not full."""
    for M, K, N, density in [(40, 1500, 400, 0.2), (600, 500, 530, 0.1), (300, 2100, 450, 0.15), (33, 300, 900, 1.0)]:
        check(M, K, N, density, torch.float32, transposed)


@pytest.mark.parametrize("ends", [(0, 200), (1300, 1500), (700, 800)])
def test_columns_that_crowd_in_one_block(ends, isa):
    dense = torch.zeros(50, 1500)
    dense[:, ends[0] : ends[1]] = 1
    dense[3], dense[4] = 0, 1
    pattern, _ = Pattern.from_dense(dense)
    dy, b = (operand(rows, 420, True, torch.float32, rows) for rows in dense.shape)
    left, right = dy.double().T, b.double()
    expected, most = (pattern.gather(f(left) @ f(right)) for f in (lambda t: t, torch.abs))
    close(csr_sddmm(dy, b, *pattern.tensors(), True), expected, most, 420, torch.float32)
    turned = b.t().contiguous().t()
    close(csr_sddmm(dy, turned, *pattern.tensors(), True), expected, most, 420, torch.float32)


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("N", [1, 3, 8, 64, 130, 1024])
def test_the_number_of_threads_changes_no_bit(N, dtype, isa):
    """80,000 nonzeros: enough work for several threads at any N."""
    for M, K in [(2000, 400), (550, 1500)]:  # the second is taken by blocks of columns from some N on
        _, pattern, _ = matrix(M, K, 0.1, dtype)
        dy, b = operand(M, N, True, dtype, 1), operand(K, N, True, dtype, 2)
        for left, right, transposed in ((dy, b, True), (dy.T.contiguous(), b.T.contiguous(), False)):
            first, *rest = bits_by_threads(csr_sddmm, left, right, *pattern.tensors(), transposed)
            assert all(torch.equal(bits, first) for bits in rest)


def test_writes_every_element_and_no_other():
    """Inside of memory that is not finite, which must neither be read nor written."""
    if extension.failure() is not None:
        pytest.skip(extension.failure())
    _, pattern, _ = matrix(40, 30, 0.15, torch.float32)
    places = pattern.row_offsets, pattern.columns
    for dtype, N, turned in itertools.product(DTYPES, (1, 2, 3, 8, 16, 17, 64, 70, 400, 1100), (False, True)):
        held = []
        for rows in (40, 30):
            around = torch.full((N + 2, rows) if turned else (rows + 2, N), float("nan"), dtype=dtype)
            around[1:-1] = operand(rows, N, turned, dtype, rows)
            held.append(around)
        dy, b = (t[1:-1] for t in held)
        dvalues = torch.full((pattern.nnz + 32,), float("nan"), dtype=dtype)
        extension.native().csr_sddmm(dy, b, *places, turned, turned, dvalues[16:-16])
        left, right = (t.double().T if turned else t.double() for t in (dy, b))
        most = pattern.gather(left.abs() @ right.abs().T)
        close(dvalues[16:-16], pattern.gather(left @ right.T), most, N, dtype)
        assert dvalues[:16].isnan().all() and dvalues[-16:].isnan().all()


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients(transposed, device, backend):
    _, pattern, _ = matrix(4, 5, 0.3, torch.float64, device=device)
    inputs = [operand(rows, 3, transposed, torch.float64, rows, device).requires_grad_() for rows in (4, 5)]

    def run(dy, b):
        return csr_sddmm(dy, b, *pattern.tensors(), transposed)

    torch.autograd.gradcheck(run, inputs, fast_mode=backend == "triton")  # the interpreter takes 10 ms a call
    torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("transposed", [False, True])
def test_is_a_lawful_torch_op(transposed, device, backend):
    _, pattern, _ = matrix(5, 7, 0.3, torch.float32, device=device)
    dy, b = (operand(rows, 3, transposed, torch.float32, rows, device).requires_grad_() for rows in (5, 7))
    torch.library.opcheck(torch.ops.sparse_ops.csr_sddmm.default, (dy, b, *pattern.tensors(), transposed))


def test_names_the_culprit():
    _, pattern, _ = matrix(5, 7, 0.3, torch.float32)
    p, dy, b = pattern.tensors(), torch.randn(3, 5), torch.randn(3, 7)
    cases = [
        (ValueError, r"dy is \(3, 7\), expected \(N, 5\) for a \(5, 7\) pattern", (b, b, *p, True)),
        (ValueError, r"b is \(3, 7\), expected \(7, N\)", (dy.T, b, *p, False)),
        (ValueError, r"dy is \(2, 5\) and b \(3, 7\), N differs", (dy[:2], b, *p, True)),
        (TypeError, r"dy is torch.float32, b is torch.float64", (dy, b.double(), *p, True)),
    ]
    for error, message, args in cases:
        with pytest.raises(error, match=message):
            csr_sddmm(*args)


@pytest.mark.parametrize("N", [2, 8, 64, 600])
def test_a_row_takes_nothing_from_the_next(N, isa):
    """Several nonzeros are taken at once, also beyond the end of a row: what is not finite there stays there."""
    rng = torch.Generator().manual_seed(N)
    for length in range(9):
        places = torch.zeros(21, 60)
        places[::2, :length] = 1
        places[1::2, 40:] = 1
        pattern, _ = Pattern.from_dense(places)
        dy, b = torch.randn(N, 21, generator=rng), torch.randn(N, 60, generator=rng)
        dy[:, 1::2] = torch.tensor([torch.inf, torch.nan]).repeat(5)
        b[:, 40:] = torch.nan
        found = pattern.to_dense(csr_sddmm(dy, b, *pattern.tensors(), True))
        torch.testing.assert_close(found[::2, :length], dy[:, ::2].T @ b[:, :length], rtol=1e-4, atol=1e-4)
        assert found[1::2, 40:].isnan().all()


def test_the_sign_of_zero_is_the_same_for_any_number_of_threads(isa):
    rng = torch.Generator().manual_seed(0)
    pattern, _ = Pattern.from_dense((torch.rand(300, 200, generator=rng) < 0.1).float())
    dy, b = torch.zeros(1024, 300), -torch.rand(1024, 200, generator=rng) - 1
    first, *rest = bits_by_threads(csr_sddmm, dy, b, *pattern.tensors(), True)
    assert all(torch.equal(bits, first) for bits in rest)
