"""csr_spmm against a dense product in float64, on every backend and instruction set; its gradients by gradcheck."""

import functools
import itertools
import threading

import pytest
import torch
from csr import DTYPES, SHAPES, bits_by_threads, close, matrix, operand
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_ops import extension, launch
from sparse_ops.formats import Pattern
from sparse_ops.ops.csr_operands import permuted
from sparse_ops.ops.csr_spmm import csr_spmm


def relaid(t, swap):
    """The same matrix, the other way round in memory where `swap`."""
    return t.t().contiguous().t() if swap else t


def check(M, K, N, density, dtype, transposed, bias=True, device="cpu", addend=False, activation="none", swap=False):
    dense, pattern, values = matrix(M, K, density, dtype, device=device)
    b = relaid(operand(K, N, transposed, dtype, 1, device), swap)
    bias = operand(M, 1, True, dtype, 2, device)[0] if bias else None
    addend = operand(M, N, transposed, dtype, 3, device) if addend else None
    y = csr_spmm(values, *pattern.tensors(), b, transposed, bias, addend, activation)
    assert (y if b.is_contiguous() else y.t()).is_contiguous()
    if launch.backend(b.device) == "native":  # with checks in Python, where operands lie in other ways
        gaps = torch.stack((values, values), -1)[:, 0]
        assert torch.equal(csr_spmm(gaps, *pattern.tensors(), b, transposed, bias, addend, activation), y)
    wide, rows = b.double().T if transposed else b.double(), dense.double()
    shift = 0 if bias is None else bias.double()[:, None]
    expected, magnitude = rows @ wide + shift, rows.abs() @ wide.abs() + abs(shift)
    if transposed:
        expected, magnitude = expected.T, magnitude.T
    if addend is not None:
        expected, magnitude = expected + addend, magnitude + addend.abs()
    if activation != "none":  # slopes of at most 1.13
        expected, magnitude = getattr(torch.nn.functional, activation)(expected), 1.13 * magnitude
    close(y, expected, magnitude, K + 1, dtype)


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_epilogue_and_layouts_on_every_instruction_set(dtype, isa):
    shapes = [(5, 0, 3), (40, 37, 1), (130, 37, 1), (1, 37, 9), (21, 33, 2), (33, 30, 8), (70, 90, 8), (70, 90, 64)]
    for activation, addend, swap in itertools.product(("none", "relu", "gelu"), (False, True), (False, True)):
        rest = {"addend": addend, "activation": activation, "swap": swap}
        for M, K, N in [*shapes, (66, 30, 200)]:
            check(M, K, N, 0.2, dtype, True, **rest)
        check(17, 33, 5, 0.2, dtype, False, **rest)
        check(66, 30, 29, 0.2, dtype, False, bias=False, **rest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_operands_that_lie_in_other_ways(dtype, backend):
    """Parts of larger tensors, and an addend that lies otherwise than the result."""
    _, pattern, values = matrix(40, 37, 0.2, dtype)
    large, addend = operand(37, 60, True, dtype, 1), operand(40, 12, True, dtype, 2)
    run = functools.partial(csr_spmm, values, *pattern.tensors())
    for b in (large[:12], large[::5], large.t().contiguous().t()[:12], torch.cat((large, large), 1)[:12, 9:46]):
        for own in (addend, relaid(addend, True), torch.stack((addend, addend), -1)[..., 0], addend[:1].expand(12, 40)):
            expected = run(b.contiguous(), True, None, own.contiguous())
            torch.testing.assert_close(run(b, True, None, own), expected, rtol=1e-5, atol=1e-5)
            assert run(b, True, None, own).is_contiguous() or b.stride(0) == 1
    zeros = torch._efficientzerotensor((12, 37), dtype=dtype)
    assert torch.equal(run(zeros, True, None), torch.zeros(12, 40, dtype=dtype))


@pytest.mark.parametrize("transposed", [False, True])
def test_regrouped_matrices_on_every_instruction_set(transposed, isa):
    """Several blocks of columns and runs of rows, ragged and empty ones, tiles that are not full."""
    for M, K, N, density in [
        (40, 1500, 100, 0.2),
        (1100, 2100, 129, 0.1),
        (2300, 65, 70, 1.0),
        (33, 5000, 300, 0.01),
        (64, 520, 97, 0.2),
    ]:
        for activation, swap in (("none", False), ("relu", True)):
            check(M, K, N, density, torch.float32, transposed, addend=swap, activation=activation, swap=swap)
    check(40, 1500, 100, 0.2, torch.float32, transposed, bias=False)


def test_a_regrouped_matrix_whose_columns_crowd_in_one_block(isa):
    rng = torch.Generator().manual_seed(0)
    for ends in ((0, 300), (1700, 2000), (900, 1100)):
        dense = torch.zeros(50, 2000)
        dense[:, ends[0] : ends[1]] = torch.randn(50, ends[1] - ends[0], generator=rng)
        dense[3] = 0
        dense[4] = 1
        pattern, values = Pattern.from_dense(dense)
        b = torch.randn(200, 2000, generator=rng)
        expected, most = (f(b.double()) @ f(dense.double()).T for f in (lambda t: t, torch.abs))
        close(csr_spmm(values, *pattern.tensors(), b, True), expected, most, 2000, torch.float32)


def test_a_regrouped_matrix_is_made_of_the_values_of_the_call():
    _, pattern, values = matrix(64, 1200, 0.2, torch.float32)
    b = operand(1200, 128, True, torch.float32, 1)
    before = csr_spmm(values, *pattern.tensors(), b, True)
    values.mul_(2.0)
    assert torch.equal(csr_spmm(values, *pattern.tensors(), b, True), 2 * before)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_epilogue_and_layouts(activation, device, backend):
    for swap in (False, True):
        check(17, 33, 5, 0.2, torch.float32, True, device=device, addend=True, activation=activation, swap=swap)
        check(17, 33, 5, 0.2, torch.bfloat16, False, device=device, addend=True, activation=activation, swap=swap)


def test_gelu_keeps_the_digits_of_its_tail(isa):
    """The product is exact: what is compared is the activation alone, from where it is 1 to where it vanishes."""
    _, pattern, values = matrix(1, 1, 2.0, torch.float32)
    x = torch.cat([torch.linspace(-9, 9, 200_001), torch.tensor([0.0, -0.0, 1e-30, 40.0, torch.inf])])[:, None]
    y = csr_spmm(torch.ones_like(values), *pattern.tensors(), x, True, None, None, "gelu")
    wide = x.double()
    expected = 0.5 * wide * torch.special.erfc(-wide * 0.5**0.5)
    allowed = (7e-7 + 2.0**-23 * wide.square()) * expected.abs() + 1e-37  # the exponent -x^2/2 is rounded
    assert (((y - expected).abs() <= allowed) | (y == expected)).all()
    nan = csr_spmm(torch.ones_like(values), *pattern.tensors(), torch.tensor([[torch.nan]]), True, None, None, "gelu")
    assert nan.isnan().all()


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
    for dtype, N in itertools.product((torch.float32, torch.bfloat16), (1, 3, 16, 17, 64, 70, 400)):
        for transposed in (True, False):  # rows around the operands that must neither be read nor written
            shape = (N + 2, 30) if transposed else (32, N)
            b = torch.full(shape, float("nan"), dtype=dtype)
            b[1:-1] = operand(30, N, transposed, dtype, 1)
            y = torch.full((N + 2, 40) if transposed else (42, N), float("nan"), dtype=dtype)
            places = pattern.row_offsets, pattern.columns
            extension.native().csr_spmm(values.to(dtype), *places, b[1:-1], None, transposed, y[1:-1])
            wide = b[1:-1].double() if transposed else b[1:-1].double().T
            expected = wide @ dense.to(dtype).double().T
            expected = expected if transposed else expected.T
            torch.testing.assert_close(
                y[1:-1].double(), expected, rtol=2.0**-7, atol=1e-2 if dtype.itemsize == 2 else 1e-5
            )
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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("N", [1, 2, 8, 12, 40, 130])
def test_a_row_takes_nothing_from_the_next(N, dtype, isa):
    """Kernels may read beyond the end of a row: what is not finite there stays there."""
    rng = torch.Generator().manual_seed(N)
    for length in (0, 1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17):
        dense = torch.zeros(21, 60, dtype=dtype)
        dense[::2, :length] = torch.randn(11, length, generator=rng).to(dtype)
        dense[1::2, 40:] = torch.tensor([torch.inf, torch.nan, 1.0, -torch.inf]).repeat(5).to(dtype)
        pattern, values = Pattern.from_dense(dense)
        b = torch.randn(N, 60, generator=rng).to(dtype)
        b[:, 40:] = torch.tensor([torch.nan, 1.0, 1.0, torch.inf]).repeat(5).to(dtype)
        y = csr_spmm(values, *pattern.tensors(), b, True)
        wide, rows = b[:, :length].double(), dense[::2, :length].double()
        close(y[:, ::2], wide @ rows.T, wide.abs() @ rows.abs().T, length + 1, dtype)
        assert y[:, 1::2].isnan().all()


@pytest.mark.parametrize("transposed", [False, True])
def test_strided_operands(transposed, device, backend):
    _, pattern, values = matrix(12, 20, 0.3, torch.float32, device=device)
    b = operand(20, 14, transposed, torch.float32, 1, device)
    expected = csr_spmm(values, *pattern.tensors(), b, transposed)
    strided = b.T.contiguous().T
    assert not strided.is_contiguous()
    y = csr_spmm(values, *pattern.tensors(), strided, transposed)
    assert torch.equal(y, expected) and y.t().is_contiguous()
    one = operand(20, 1, transposed, torch.float32, 1, device)
    expanded = one.expand(14, 20) if transposed else one.expand(20, 14)
    y = csr_spmm(values, *pattern.tensors(), expanded, transposed)
    torch.testing.assert_close(y, csr_spmm(values, *pattern.tensors(), one, transposed).expand_as(y))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("N", [1, 3, 8, 64, 130, 1024])
def test_the_number_of_threads_changes_no_bit(N, dtype, isa):
    """80,000 nonzeros: enough work for several threads at any N."""
    for M, K in [(2000, 400), (550, 1500)]:  # the second is regrouped from some N on
        _, pattern, values = matrix(M, K, 0.1, dtype)
        b, bias = operand(K, N, True, dtype, 1), operand(M, 1, True, dtype, 2)[0]
        for own, transposed in ((b, True), (relaid(b, True), True), (b.T.contiguous(), False)):
            first, *rest = bits_by_threads(csr_spmm, values, *pattern.tensors(), own, transposed, bias)
            assert all(torch.equal(bits, first) for bits in rest)


def test_threads_of_python_and_nested_parallel_regions_do_not_meet():
    """The same bits from several threads that call at once, each with threads of its own."""
    _, pattern, values = matrix(300, 200, 0.1, torch.float32)
    inputs = [operand(200, N, True, torch.float32, N) for N in (1, 7, 64, 130, 250)]
    expected = [csr_spmm(values, *pattern.tensors(), b, True) for b in inputs]
    wrong = []

    def work(offset):
        torch.set_num_threads(2)
        for i in range(60):
            at = (i + offset) % len(inputs)
            if not torch.equal(csr_spmm(values, *pattern.tensors(), inputs[at], True), expected[at]):
                wrong.append(at)

    before = torch.get_num_threads()
    try:
        threads = [threading.Thread(target=work, args=(offset,)) for offset in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        torch.set_num_threads(before)
    assert not wrong


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_through_the_epilogue(transposed):
    _, pattern, values = matrix(4, 5, 0.4, torch.float64)
    b, addend = operand(5, 3, transposed, torch.float64, 1), operand(4, 3, transposed, torch.float64, 3)
    inputs = [t.requires_grad_() for t in (values, b.t().contiguous().t(), addend)]

    def run(values, b, addend):
        return csr_spmm(values, *pattern.tensors(), b, transposed, None, addend, "relu")

    torch.autograd.gradcheck(run, inputs)
    torch.autograd.gradgradcheck(run, inputs, fast_mode=True)
    with pytest.raises(ValueError, match="activation='gelu' has no gradient"):
        csr_spmm(values, *pattern.tensors(), b, transposed, None, None, "gelu")


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
        strided = (*args[:6], b.detach().t().contiguous().t(), transposed)
        addend = csr_spmm(*strided).detach().requires_grad_()
        torch.library.opcheck(torch.ops.sparse_ops.csr_spmm.default, (*strided, bias, addend, "relu"))


def test_the_same_without_autograd(isa):
    """The call that goes past the dispatcher, whose checks are in C++: the same bits, strides and errors."""
    for dtype, N, transposed in itertools.product(DTYPES, (0, 1, 8, 20), (False, True)):
        _, pattern, values = matrix(21, 33, 0.3, dtype)
        bias, b = operand(21, 1, True, dtype, 2)[0], operand(33, N, transposed, dtype, 1)
        gaps = torch.stack((b, b), -1)[..., 0]
        for own in (b, relaid(b, True), gaps):
            expected = csr_spmm(values, *pattern.tensors(), own, transposed, bias)
            with torch.no_grad():
                y = csr_spmm(values, *pattern.tensors(), own, transposed, bias)
            assert torch.equal(y, expected) and y.stride() == expected.stride()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("nnz", [0, 1, 63, 64, 65, 200_001])
def test_values_of_the_transpose(nnz, dtype):
    values, order = torch.randn(nnz).to(dtype), torch.randperm(nnz).int()
    assert torch.equal(permuted(values, order), values[order.long()])
    recorded = values.clone().requires_grad_()
    permuted(recorded, order).backward(values)
    assert torch.equal(recorded.grad[order.long()], values)


@torch.no_grad()
def test_names_the_culprit_without_autograd():
    _, pattern, values = matrix(5, 7, 0.3, torch.float32)
    p, b = pattern.tensors(), torch.randn(3, 7)
    for error, message, args in [
        (ValueError, r"b is \(7, 3\), expected \(N, 7\)", (values, *p, b.T, True)),
        (TypeError, r"values is torch.float32, b is torch.float64", (values, *p, b.double(), True)),
        (ValueError, r"values are \(1,\)", (values[:1], *p, b, True)),
        (ValueError, r"bias is \(4,\), expected \(5,\)", (values, *p, b, True, torch.randn(4))),
        (TypeError, r"columns is torch.int64", (values, p[0], p[1].long(), *p[2:], b, True)),
    ]:
        with pytest.raises(error, match=message):
            csr_spmm(*args)


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
        (ValueError, r"addend is \(3, 4\), expected \(3, 5\)", (values, *p, b, True, None, torch.randn(3, 4))),
        (
            TypeError,
            r"b is torch.float32, addend is torch.float64",
            (values, *p, b, True, None, torch.randn(3, 5).double()),
        ),
        (
            ValueError,
            r"activation is 'tanh'; it may be one of none, relu, gelu",
            (values, *p, b, True, None, None, "tanh"),
        ),
        (TypeError, r"columns is torch.int64", (values, p[0], p[1].long(), *p[2:], b, True)),
        (ValueError, r"t_columns 1", (values, *p[:3], p[3][:1], p[4], b, True)),
    ]
    for error, message, args in cases:
        with pytest.raises(error, match=message):
            csr_spmm(*args)
