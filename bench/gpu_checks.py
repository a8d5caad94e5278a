"""Checks of selection, the penalty's loss, sparse products and convolutions on a device, against float64 torch."""

import argparse
import functools
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

import sparse_ops
from bench.gpu import Skipped
from bench.gpu_problems import (
    FLOATS,
    KINDS,
    bits,
    compute_eps,
    guarded,
    guards_hold,
    op_under_test,
    randn,
    unpacked,
    values,
    within,
)
from sparse_ops.formats import Pattern
from sparse_ops.layouts import batch_last, is_batch_last
from sparse_ops.ops.apply_masks import apply_masks_
from sparse_ops.ops.csr_sddmm import csr_sddmm
from sparse_ops.ops.csr_spmm import csr_spmm
from sparse_ops.ops.fused_layers import fused_conv2d, fused_linear
from sparse_ops.ops.hypersparse_loss import hypersparse_loss
from sparse_ops.ops.hypersparse_penalty import hypersparse_penalty
from sparse_ops.ops.hypersparse_sums import hypersparse_sums
from sparse_ops.ops.kth_magnitude import kth_magnitude
from sparse_ops.ops.magnitude_mask import magnitude_mask
from sparse_ops.ops.regularized_sgd import regularized_sgd_
from sparse_ops.ops.soft_threshold import soft_threshold
from sparse_ops.ops.sparse_conv2d import sparse_conv2d
from sparse_ops.ops.to_layout import to_layout

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16


def weight_list(args: argparse.Namespace, kind: str, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Tensors of many shapes and layouts: empty, one element, ragged, channels_last, transposed, with gaps."""
    shapes = [(0,), (), (7,), (33, 13), (4, 5, 3, 3), (6, 10), (300,)]
    if args.device == "cuda":
        shapes += [(64, 64, 3, 3), (1000, 257), (2_000_003,)]
    made = []
    for i, shape in enumerate(shapes):
        t = values(torch.Size(shape).numel(), kind, dtype, seed + i, args.device).reshape(shape)
        if t.dim() == 4:
            t = t.contiguous(memory_format=torch.channels_last)
        elif shape == (33, 13):
            t = t.T.contiguous().T
        elif shape == (6, 10):
            wide = torch.full((6, 20), torch.nan, dtype=dtype, device=args.device)
            wide[:, ::2] = t
            t = wide[:, ::2]
        made.append(t)
    return made


def magnitudes(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1).double().abs() for t in tensors])


def selection(args, kind: str, dtype: torch.dtype) -> None:
    """The k-th magnitude for k at both ends, in the middle and around ties; masks with as many zeros."""
    tensors = weight_list(args, kind, dtype)
    u = magnitudes(tensors)
    n = u.numel()
    ordered = u.sort().values
    ranks = [1, n // 2, n] if args.device == "cpu" else [1, 2, 17, n // 50, n // 2, n - n // 50, n - 1, n]
    for k in ranks:
        with op_under_test():
            got = kth_magnitude(tensors, k)
        assert got.dtype == dtype and got.item() == ordered[k - 1].item(), f"k {k}: {got} is not {ordered[k - 1]}"
    if args.device == "cpu" and dtype != F32:
        return
    cases = [(n - n // 50, False), (n // 2, True), (0, False), (n // 3, False), (n, False)]
    for zeros, prune_ties in cases[: 2 if args.device == "cpu" else 5]:
        with op_under_test():
            masks = magnitude_mask(tensors, zeros, prune_ties)
        keep = []
        for mask, t in zip(masks, tensors, strict=True):
            flat = unpacked(mask, t.numel())
            dense = t.is_contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t.is_contiguous()
            strides = t.stride() if dense or tuple(t.shape) == (33, 13) else t.contiguous().stride()
            keep.append(flat.as_strided(t.shape, strides).reshape(-1))
        got = torch.cat(keep)
        if prune_ties:
            want = u > ordered[zeros - 1]
        else:  # from the largest on, of equals the first
            order = torch.sort(u, descending=True, stable=True).indices
            want = torch.zeros(n, dtype=torch.bool, device=u.device)
            want[order[: n - zeros]] = True
        assert torch.equal(got, want), f"{zeros} zeros: {(got != want).sum().item()} bits are wrong"


def selection_odd(args) -> None:
    """Mixed dtypes promote; a NaN makes a NaN, and of a mask an error that names the tensor."""
    tensors = [values(900, "normal", dtype, i, args.device) for i, dtype in enumerate((F32, F16, BF16, F16))]
    u = magnitudes(tensors).sort().values
    nan = [tensors[0], torch.full((9,), torch.nan, device=args.device)]
    with op_under_test():
        assert kth_magnitude(tensors, 1800).item() == u[1799].item()
        assert kth_magnitude(nan, 5).isnan()
        try:
            magnitude_mask(nan, 5)
        except ValueError as error:
            assert "tensors[1]" in str(error)
        else:
            raise AssertionError("a NaN became a mask")


def masks_applied(args, dtype: torch.dtype) -> None:
    tensors = [guarded(randn(n, n, dtype, args.device)) for n in (0, 1, 9, 4096, 5003)]
    packed = [bits(t.numel(), 7, args.device) for t in tensors]
    old = [t.clone() for t in tensors]
    with op_under_test():
        apply_masks_(tensors, packed)
    for t, mask, before in zip(tensors, packed, old, strict=True):
        assert torch.equal(t, torch.where(unpacked(mask, t.numel()), before, torch.zeros_like(before)))
        assert not torch.signbit(t[~unpacked(mask, t.numel())]).any(), "a zero is negative"
        guards_hold(t)


def sums(args, kind: str, dtype: torch.dtype) -> None:
    tensors = weight_list(args, kind, dtype)
    u = magnitudes(tensors)
    for s in (0.0, 0.7, 30.0):
        with op_under_test():
            got = hypersparse_sums(tensors, torch.tensor(s, dtype=F64, device=args.device))
        tanh, sech2 = torch.tanh(s * u), torch.cosh(s * u) ** -2
        want = torch.stack([u.sum(), tanh.sum(), (u * sech2).sum(), (u * u * tanh * sech2).sum()])
        torch.testing.assert_close(got, want, rtol=2e-6, atol=1e-9)


def loss(args, dtype: torch.dtype) -> None:
    """The gradient of the loss, and of the penalty with constants, against the formula in float64."""
    tensors = [t.detach().clone().requires_grad_() for t in weight_list(args, "normal", dtype)]
    u = magnitudes([t.detach() for t in tensors])
    with op_under_test():
        value = hypersparse_loss(tensors, 0.9)
        grads = torch.autograd.grad(3 * value, tensors)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            nothing = hypersparse_loss([torch.zeros(50, device=args.device, requires_grad=True)], 0.5)
    assert value.item() == 0 and nothing.item() == 0
    assert any("no penalty" in str(w.message) for w in said), "zeros give no penalty, and a warning"
    s = 0.6585 / u.sort().values[int(0.9 * u.numel())]
    pull = s * u.sum() / torch.tanh(s * u).sum()
    for i, (t, g) in enumerate(zip(tensors, grads, strict=True)):
        w = t.detach().double()
        want = 3 * pull * w.sign() / torch.cosh(s * w.abs()) ** 2
        within(g, want, 3 * pull.item() * (1 + (s * w).abs()), f"gradient {i}")
    normalizer = 0.8 * u.numel()
    with op_under_test():
        value = hypersparse_penalty(tensors, s, normalizer)
        grads = torch.autograd.grad(value, tensors)
    base = torch.tanh(s * u).sum() / normalizer - 1
    torch.testing.assert_close(value.double(), u.sum() * base, rtol=1e-5, atol=1e-5)
    for i, (t, g) in enumerate(zip(tensors, grads, strict=True)):
        w = t.detach().double()
        factor = s * u.sum() / normalizer
        want = w.sign() * (base + factor / torch.cosh(s * w.abs()) ** 2)
        within(g, want, (base.abs() + factor).item() * (1 + (s * w).abs()), f"gradient {i}", 64)


def shrinkage(args, dtype: torch.dtype) -> None:
    """Soft thresholds and their gradients, one a tensor and one a row, against the formula in float64.

    Weights are multiples of 1/16 and thresholds lie between two of them, so that rounding moves none across.
    """
    shapes = [(1,), (30,), (2, 1030), (3, 2, 3, 3)]  # each group is a program, which the interpreter takes one by one
    if args.device == "cuda":
        shapes = [(1,), (300,), (7, 1030), (3, 5, 3, 3), (5, 400_003)]
    for shape in shapes:
        n = torch.Size(shape).numel()
        w = ((16 * randn(n, n, F32, args.device)).round() / 16).to(dtype).reshape(shape)
        g = randn(n, n + 1, dtype, args.device).reshape(shape)
        for groups, relative, leaky in itertools.product((1, shape[0]), (False, True), ("relu", "elu")):
            rows, dy = w.double().reshape(groups, -1), g.double().reshape(groups, -1)
            norms = rows.abs().sum(1, keepdim=True)
            t = torch.full_like(norms, 0.28) if not relative else 0.28 / norms.clamp_min(1)
            given = t.flatten().detach().clone().requires_grad_()
            leaf = w.detach().clone().requires_grad_()
            with op_under_test():
                y = soft_threshold(leaf, given, relative, leaky)
                dw, dt = torch.autograd.grad(y, [leaf, given], g)
            level = t * norms if relative else t
            rest, what = rows.abs() - level, f"{shape}, {groups} groups, relative {relative}, {leaky}"
            want = rows.sign() * rest.clamp_min(0)
            within(y.reshape(groups, -1), want, rows.abs() + level, what)
            passing = torch.where(rest > 0, dy, dy * rest.clamp_max(0).exp() if leaky == "elu" else 0.0)
            d = -(passing * rows.sign()).sum(1, keepdim=True)
            size = passing.abs().sum(1, keepdim=True)
            pull = t * d if relative else torch.zeros_like(d)
            bound = dy.abs() + (t * size if relative else 0)
            within(dw.reshape(groups, -1), passing + pull * rows.sign(), bound, "dw of " + what, 64)
            slope = norms if relative else torch.ones_like(norms)
            eps = 64 * compute_eps(dtype)
            assert ((dt.reshape(groups, 1) - d * slope).abs() <= eps * size * slope).all(), "dt of " + what


EPSILON = {F64: 2.0**-52, F32: 2.0**-23, F16: 2.0**-10, BF16: 2.0**-7}


def product_close(got: Tensor, want: Tensor, size: Tensor, terms: int, what: str) -> None:
    """Sums of `terms` products, of magnitudes that add up to `size`, rounded once to got's dtype."""
    assert got.shape == want.shape, f"{what} is {tuple(got.shape)}"
    within(got, want, size, what, 2.0 * (terms + 2))


def products(args, dtype: torch.dtype) -> None:
    """SpMM with its three gradients, SDDMM among them, in both layouts."""
    shapes = [(0, 5, 3), (4, 6, 0), (1, 1, 1), (40, 37, 1), (17, 33, 5)]
    shapes += [] if args.device == "cpu" else [(70, 90, 150), (1024, 768, 512), (513, 1030, 257)]
    if args.device == "cpu" and dtype != F32:
        shapes = shapes[3:4]
    for (M, K, N), transposed in itertools.product(shapes, (False, True)):
        density = 0.3 if M < 100 else 0.05
        keep = torch.rand(M, K, generator=torch.Generator().manual_seed(M)) < density
        keep[1:2], keep[2:3] = False, True  # an empty row and a full one
        a = randn(M * K, 1, dtype, args.device).view(M, K) * keep.to(args.device)
        pattern, live = Pattern.from_dense(a)
        live.requires_grad_()
        b = randn(K * N, 2, dtype, args.device).view((N, K) if transposed else (K, N)).requires_grad_()
        bias = randn(M, 3, dtype, args.device).requires_grad_()
        dy = randn(M * N, 4, dtype, args.device).view((N, M) if transposed else (M, N))
        with op_under_test():
            y = csr_spmm(live, *pattern.tensors(), b, transposed, bias)
            grads = torch.autograd.grad(y, [live, b], dy)
            dvalues = csr_sddmm(dy, b.detach(), *pattern.tensors(), transposed)
        a64, b64, d64 = a.double(), b.detach().double(), dy.double()
        b64, d64 = (b64.T, d64.T) if transposed else (b64, d64)
        name = f"{(M, K, N)} transposed {transposed}"
        turn = (lambda t: t.T) if transposed else (lambda t: t)
        column = bias.detach().double()[:, None]
        size = a64.abs() @ b64.abs() + column.abs()
        product_close(turn(y.detach()), a64 @ b64 + column, size, K, f"y {name}")
        product_close(turn(grads[1]), a64.T @ d64, a64.T.abs() @ d64.abs(), M, f"db {name}")
        rows, columns = pattern.rows(), pattern.columns.long()
        want, size = (d64 @ b64.T)[rows, columns], (d64.abs() @ b64.T.abs())[rows, columns]
        product_close(grads[0], want, size, N, f"dvalues {name}")
        product_close(dvalues, want, size, N, f"sddmm {name}")


# images, channels, outputs, height, width, kernel, stride, padding, dilation, groups
CONVOLUTIONS = [
    (2, 6, 8, 8, 8, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (2, 4, 6, 15, 14, (3, 3), (2, 3), (1, 2), (1, 1), 1),
    (1, 4, 5, 13, 17, (3, 2), (1, 1), (2, 0), (2, 3), 1),
    (2, 12, 8, 9, 6, (3, 3), (1, 1), (1, 1), (1, 1), 4),
    (0, 4, 5, 6, 6, (3, 3), (1, 1), (1, 1), (1, 1), 1),
]
LARGER = [
    (16, 64, 64, 56, 56, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (8, 128, 256, 28, 28, (1, 1), (2, 2), (0, 0), (1, 1), 1),
    (4, 3, 64, 64, 64, (7, 7), (2, 2), (3, 3), (1, 1), 1),
    (4, 32, 32, 30, 31, (3, 3), (1, 1), (1, 1), (1, 1), 32),
]


def convolutions(args, dtype: torch.dtype, channels_last: bool) -> None:
    """The output and the gradients of image, values and bias."""
    if args.device == "cpu":
        shapes = CONVOLUTIONS[1:2] if dtype != F32 or channels_last else CONVOLUTIONS[1:]
    else:
        shapes = CONVOLUTIONS + LARGER
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    for n, c, o, height, width, kernel, *window in shapes:
        groups = window[-1]
        taps = kernel[0] * kernel[1]
        keep = torch.rand(o * c // groups * taps, generator=torch.Generator().manual_seed(o)) < (0.3 if c < 30 else 0.1)
        dense = (randn(keep.numel(), 1, dtype, args.device) * keep.to(args.device)).view(o, c // groups, *kernel)
        pattern, live = Pattern.from_dense(dense)
        x = randn(n * c * height * width, 2, dtype, args.device).view(n, c, height, width)
        x = x.contiguous(memory_format=memory_format)
        bias = randn(o, 3, dtype, args.device)
        inputs = [t.requires_grad_() for t in (x, live, bias)]
        with op_under_test():
            y = sparse_conv2d(x, live, *pattern.tensors(), bias, kernel, *window)
            dy = randn(y.numel(), 4, dtype, args.device).view(y.shape).contiguous(memory_format=memory_format)
            grads = torch.autograd.grad(y, inputs, dy)
        sides = []
        for transform in (Tensor.double, lambda t: t.double().abs()):
            wide = [transform(t.detach()).cpu().requires_grad_() for t in (x, dense, bias)]  # the CPU knows no TF32
            out = conv2d(*wide, *window)
            sides.append([out.detach(), *torch.autograd.grad(out, wide, transform(dy).cpu())])
        (want_y, want_dx, want_dw, want_db), (size_y, size_dx, size_dw, size_db) = sides
        rows, columns = pattern.rows().cpu(), pattern.columns.long().cpu()
        matrices = [t.reshape(o, -1)[rows, columns] for t in (want_dw, size_dw)]
        name = f"{(n, c, o, height, width, kernel, *window)}"
        pixels = n * y.shape[2] * y.shape[3]
        product_close(y.detach().cpu(), want_y, size_y, c // groups * taps, f"y {name}")
        product_close(grads[0].cpu(), want_dx, size_dx, o // groups * taps, f"dx {name}")
        product_close(grads[1].cpu(), *matrices, pixels, f"dvalues {name}")
        product_close(grads[2].cpu(), want_db, size_db, pixels, f"dbias {name}")


def layers(args) -> None:
    """SparseLinear and SparseConv2d as modules: what a dense layer gives, in training and under autocast."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    with torch.no_grad():
        for layer in (dense[0], dense[3]):
            layer.weight *= torch.rand_like(layer.weight) < 0.2
    dense = dense.to(args.device)
    with op_under_test():
        first, last = sparse_ops.nn.SparseConv2d.from_dense(dense[0]), sparse_ops.nn.SparseLinear.from_dense(dense[3])
        sparse = nn.Sequential(first, *dense[1:3], last)
        x = torch.randn(4, 3, 6, 6).to(args.device)
        y = sparse(x)
        y.square().sum().backward()
        with torch.autocast(args.device, dtype=BF16), torch.no_grad():
            half = sparse(x)
    reference = nn.Sequential(*list(dense)).double()
    with torch.no_grad():
        want = reference(x.double())
    torch.testing.assert_close(y.detach().double(), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(half.double(), want, rtol=0.05, atol=0.05)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in sparse.parameters())


def above_2_31_elements(args) -> None:
    """One bfloat16 tensor of more than 2^31 elements: selection, update and statistics behind the 32-bit limit."""
    if args.device == "cpu" or torch.cuda.mem_get_info()[0] < 40 * 2**30:
        raise Skipped("needs 40 GiB of device memory")
    n = 2**31 + 12_345
    w = torch.zeros(n, dtype=BF16, device=args.device)
    special = [5, 2**31 - 1, 2**31, 2**31 + 7, n - 1]
    for i, at in enumerate(special):
        w[at] = 1.0 + i
    assert kth_magnitude([w], n - 4).item() == 1.0
    assert kth_magnitude([w], n).item() == 5.0
    [mask] = magnitude_mask([w], n - 3)
    kept = mask.nonzero().reshape(-1).tolist()
    assert kept == sorted({at // 8 for at in special[2:]} | ({n // 8} if n % 8 else set())), f"bytes {kept} are kept"
    f64 = {"dtype": F64, "device": args.device}
    tables = torch.zeros(1, 4, **f64), torch.tensor([[2.5, 3.5]], **f64), torch.zeros(1, 7, **f64)
    candidates = torch.full((1, 8), torch.nan, device=args.device)
    g = torch.zeros_like(w)
    g[special[-1]] = 1.0
    regularized_sgd_([w], [g], [], [], [], [0], *tables, candidates, penalty="none", lr=1.0)
    assert [w[at].item() for at in special] == [1.0, 2.0, 3.0, 4.0, 4.0]
    assert tables[2][0].tolist() == [14.0, 0.0, 14.0, 0.0, 2.0, 1.0, float(n)], tables[2]
    assert candidates[0, 0].item() == 3.0 and candidates[0, 1:].isnan().all()


def streams_and_tables(args) -> None:
    """Steps on several streams at once, with more tables than are kept: none is overwritten before it was read."""
    if args.device == "cpu":
        raise Skipped("needs a CUDA device")
    streams = [torch.cuda.Stream() for _ in range(3)]
    problems = []
    for _ in streams:
        w = [torch.full((1000 + 8 * j,), float(j), device=args.device) for j in range(100)]
        problems.append((w, [torch.ones_like(t) for t in w]))
    f64 = {"dtype": F64, "device": args.device}
    tables = [torch.zeros(0, k, **f64) for k in (4, 2, 7)]
    none = torch.zeros(0, 1, device=args.device)
    torch.cuda.synchronize()
    for stream, (w, g) in zip(streams, problems, strict=True):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)  # so that the tables are evicted while their kernels still wait
            for j in range(100):
                lists = w[: j + 1], g[: j + 1], [], [], [], [-1] * (j + 1)
                regularized_sgd_(*lists, *tables, none, penalty="none", lr=1.0)
    torch.cuda.synchronize()
    for w, _ in problems:
        assert [t[0].item() for t in w] == [float(j - (100 - j)) for j in range(100)]


def inference_layers(args: argparse.Namespace, dtype: torch.dtype) -> None:
    """Layouts exactly; layers of optimize_for_inference, dense and sparse, with addend and ReLU, in either layout.

    Dense ones round before they add.
    """
    x = randn(3 * 5 * 6 * 7, 1, dtype, args.device).reshape(3, 5, 6, 7)
    w = randn(8 * 5 * 9, 2, dtype, args.device).reshape(8, 5, 3, 3)
    w = torch.where(randn(w.numel(), 3, F32, args.device).reshape(w.shape) > 1, w, 0)
    bias, addend = randn(8, 4, dtype, args.device), randn(3 * 8 * 6 * 7, 5, dtype, args.device).reshape(3, 8, 6, 7)
    for name in ("contiguous", "channels_last", "batch_last"):
        with op_under_test():
            turned = to_layout(x, name)
        assert torch.equal(turned, x), name
        assert {"contiguous": turned.is_contiguous(), "batch_last": is_batch_last(turned)}.get(name, True), name
    pattern, live = Pattern.from_dense(w.flatten(1))
    rest = pattern.row_offsets, pattern.columns, pattern.t_row_offsets
    x64, w64, b64 = x.double(), w.double(), bias.double()
    size = conv2d(x64.abs(), w64.abs(), b64.abs(), padding=1) + addend.double().abs()
    want = (conv2d(x64, w64, b64, padding=1) + addend.double()).relu()
    window = (1, 1), (1, 1, 1, 1), (1, 1), 1
    for last, (weight, held) in itertools.product((False, True), ((w, None), (None, live))):
        image, more = (batch_last(t) if last else t for t in (x, addend))
        given = (weight, held, *(rest if weight is None else (None,) * 3), list(w.shape), bias)
        with op_under_test(), torch.no_grad():
            y = fused_conv2d(image, *given, *window, more.clone(), "relu")
        twice = 0.0 if weight is None else 2 * EPSILON[dtype] / compute_eps(dtype)
        within(y, want, size, f"fused_conv2d, dense {weight is not None}, batch last {last}", 94 + twice)
    rows, matrix = x.reshape(3, -1)[:, :45].contiguous(), w.flatten(1)
    wanted = (rows.double() @ matrix.double().T + b64).relu()
    size = rows.double().abs() @ matrix.double().abs().T + b64.abs()
    for weight, held in ((matrix, None), (None, live)):
        given = (weight, held, *(rest if weight is None else (None,) * 3), list(matrix.shape), bias)
        with op_under_test(), torch.no_grad():
            y = fused_linear(rows, *given, None, "relu")
        product_close(y, wanted, size, 45, f"fused_linear, dense {weight is not None}")


def _checks() -> dict[str, Callable[[argparse.Namespace], None]]:
    made: dict[str, Callable[[argparse.Namespace], None]] = {}

    def add(name: str, check: Callable[..., Any], **options: Any) -> None:
        made[name] = functools.partial(check, **options)

    for dtype in FLOATS:
        name = str(dtype).removeprefix("torch.")
        add(f"csr_spmm csr_sddmm {name}", products, dtype=dtype)
        for last in (False, True):
            add(f"sparse_conv2d {name}{' channels_last' * last}", convolutions, dtype=dtype, channels_last=last)
        add(f"fused_layers to_layout {name}", inference_layers, dtype=dtype)
    add("SparseLinear SparseConv2d", layers)
    for kind in KINDS:
        add(f"kth_magnitude magnitude_mask {kind}", selection, kind=kind, dtype=F32)
    for dtype in FLOATS[1:]:
        for kind in ("normal", "denormal", "any bits"):
            add(f"kth_magnitude magnitude_mask {kind} {dtype}".replace("torch.", ""), selection, kind=kind, dtype=dtype)
    add("kth_magnitude magnitude_mask mixed, NaN", selection_odd)
    for dtype in FLOATS:
        name = str(dtype).removeprefix("torch.")
        add(f"apply_masks {name}", masks_applied, dtype=dtype)
        add(f"soft_threshold {name}", shrinkage, dtype=dtype)
        add(f"hypersparse_sums {name}", sums, kind="normal", dtype=dtype)
        add(f"hypersparse_loss hypersparse_penalty {name}", loss, dtype=dtype)
    add("hypersparse_sums denormal", sums, kind="denormal", dtype=F32)
    add("above 2^31 elements", above_2_31_elements)
    add("streams and tables", streams_and_tables)
    return made


CHECKS = _checks()
