"""SparseConv2d against the torch.nn.Conv2d that it was made from."""

import copy
import io
import pickle
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from sparse_ops.nn.conv import SparseConv2d

# Beside 6 input and 9 output channels.
CONVS = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "stride, no bias": {"kernel_size": (3, 2), "stride": 2, "bias": False},
    "groups": {"kernel_size": 3, "padding": (2, 1), "groups": 3, "dilation": 2},
    "same": {"kernel_size": (3, 5), "padding": "same", "dilation": (1, 2)},
    "same, even kernel": {"kernel_size": (4, 2), "padding": "same"},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "reflect": {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
    "circular same": {"kernel_size": 4, "padding": "same", "padding_mode": "circular"},
    "replicate": {"kernel_size": 3, "padding": (1, 2), "padding_mode": "replicate", "stride": 2},
}


def pruned(seed=0, dtype=torch.float32, **arguments):
    torch.manual_seed(seed)
    conv = nn.Conv2d(6, 9, **arguments, dtype=dtype)
    with torch.no_grad():
        conv.weight *= torch.rand_like(conv.weight) < 0.3
    return conv


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("arguments", CONVS.values(), ids=CONVS)
def test_same_answers_and_gradients_as_dense(arguments, batched, backend):
    dense = pruned(dtype=torch.float64, **arguments)
    sparse = SparseConv2d.from_dense(dense)
    x = torch.randn(*(3,) * batched, 6, 11, 9, dtype=torch.float64)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = sparse(a), dense(b)
    torch.testing.assert_close(y, expected)
    dy = torch.randn_like(expected)
    y.backward(dy)
    expected.backward(dy)
    torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(sparse.values.grad, dense.weight.grad[dense.weight != 0])
    if dense.bias is not None:
        torch.testing.assert_close(sparse.bias.grad, dense.bias.grad)


@pytest.mark.parametrize("arguments", CONVS.values(), ids=CONVS)
def test_back_to_dense_is_exact(arguments):
    dense = pruned(**arguments).eval()
    back = SparseConv2d.from_dense(dense).to_dense()
    assert type(back) is nn.Conv2d and back.extra_repr() == dense.extra_repr() and not back.training
    assert torch.equal(back.weight, dense.weight)
    assert dense.bias is None or torch.equal(back.bias, dense.bias)


def test_takes_a_pruned_layer():
    dense = nn.Conv2d(4, 6, 3)
    prune.random_unstructured(dense, "weight", 0.9)
    sparse = SparseConv2d.from_dense(dense)
    assert sparse.nnz == int(dense.weight_mask.sum())
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(sparse(x), dense(x))


def test_keeps_training_mode_and_frozen_parameters():
    dense = pruned(**CONVS["3x3"]).eval().requires_grad_(False)
    sparse = SparseConv2d.from_dense(dense)
    assert not sparse.training and not sparse.values.requires_grad and not sparse.bias.requires_grad
    assert sparse.bias is dense.bias


def test_weight_is_read_only_and_dense():
    dense = pruned(**CONVS["3x3"])
    sparse = SparseConv2d.from_dense(dense)
    assert torch.equal(sparse.weight, dense.weight)
    with pytest.raises(AttributeError, match="read-only"):
        sparse.weight = dense.weight


def test_copies_and_saves():
    sparse = SparseConv2d.from_dense(pruned(**CONVS["groups"]))
    x = torch.randn(2, 6, 11, 9)
    expected = sparse(x)
    buffer = io.BytesIO()
    torch.save(sparse.state_dict(), buffer)
    buffer.seek(0)
    other = SparseConv2d.from_dense(pruned(seed=1, **CONVS["groups"]))
    other.load_state_dict(torch.load(buffer, weights_only=True))
    for twin in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse)), other):
        assert torch.equal(twin(x), expected)
        assert twin.values.data_ptr() != sparse.values.data_ptr()


def test_loads_a_dense_state_dict():
    dense = pruned(seed=3, **CONVS["3x3"])
    sparse = SparseConv2d.from_dense(pruned(**CONVS["3x3"]))
    sparse.load_state_dict(dense.state_dict())
    x = torch.randn(2, 6, 8, 8)
    torch.testing.assert_close(sparse(x), dense(x))


def test_channels_last_in_channels_last_out(backend):
    sparse = SparseConv2d.from_dense(pruned(**CONVS["3x3"]))
    x = torch.randn(2, 6, 8, 8)
    y = sparse(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y.contiguous(), sparse(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype, backend):
    dense = pruned(**CONVS["3x3"])
    sparse = SparseConv2d.from_dense(dense)
    x = torch.randn(2, 6, 8, 8, requires_grad=True)
    with torch.autocast("cpu", dtype):
        y, expected = sparse(x), dense(x)
        assert y.dtype == expected.dtype == dtype
        assert sparse(x.double().float()).dtype == dtype
    torch.testing.assert_close(y, expected, rtol=2**-6, atol=2**-6)
    y.float().sum().backward()
    assert sparse.values.grad.dtype == x.grad.dtype == torch.float32


def test_compiles_whole_forward_and_backward():
    sparse = nn.Sequential(SparseConv2d.from_dense(pruned(**CONVS["same"])), nn.ReLU())
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager")
    for x in (torch.randn(2, 6, 8, 8), torch.randn(5, 6, 9, 8).to(memory_format=torch.channels_last)):
        results = []
        for run in (sparse, compiled):
            leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
            sparse.zero_grad()
            y = run(leaf)
            y.square().sum().backward()
            results.append((y, leaf.grad, sparse[0].values.grad, sparse[0].bias.grad))
        torch.testing.assert_close(*results)
        assert results[0][0].stride() == results[1][0].stride()


def test_exports_with_a_dynamic_batch():
    sparse = SparseConv2d.from_dense(pruned(**CONVS["3x3"]))
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(sparse, (torch.randn(2, 6, 8, 8),), dynamic_shapes=(batch,))
    x = torch.randn(5, 6, 8, 8)
    assert torch.equal(program.module()(x), sparse(x))


def test_says_what_it_is():
    sparse = SparseConv2d.from_dense(pruned(**CONVS["same"]))
    assert "6, 9, kernel_size=(3, 5), stride=(1, 1), padding='same', dilation=(1, 2), nnz=" in repr(sparse)


def test_names_the_culprit():
    sparse = SparseConv2d.from_dense(pruned(**CONVS["3x3"]))
    with pytest.raises(TypeError, match=r"conv is a ConvTranspose2d, expected a torch\.nn\.Conv2d"):
        SparseConv2d.from_dense(nn.ConvTranspose2d(2, 2, 3))
    with pytest.raises(ValueError, match=r"x is \(6, 8\), expected"):
        sparse(torch.randn(6, 8))
    with pytest.raises(ValueError, match="x has 5 channels, the weight 6"):
        sparse(torch.randn(1, 5, 8, 8))
    with pytest.raises(TypeError, match=r"x is torch.float64, values is torch.float32"):
        sparse(torch.randn(1, 6, 8, 8, dtype=torch.float64))
    with pytest.raises(ValueError, match="padding_mode is 'mirror', expected one of"):
        SparseConv2d(sparse.pattern, sparse.values, None, (3, 3), padding_mode="mirror")
    for wrong, text in ((None, "None"), (3, "3"), (nn.Conv2d(2, 2, 3), "a Conv2d")):
        with pytest.raises(TypeError, match=f"SparseConv2d: pattern is {text}, expected a Pattern; .*from_dense"):
            SparseConv2d(wrong)
        with pytest.raises(TypeError, match=f"SparseConv2d: x is {text}, expected a Tensor"):
            sparse(wrong)
    with pytest.raises(TypeError, match=r"SparseConv2d\.from_dense: conv is None, expected a torch\.nn\.Conv2d"):
        SparseConv2d.from_dense(None)
    with pytest.raises(TypeError, match="SparseConv2d: bias is 3, expected a Tensor or None"):
        SparseConv2d(sparse.pattern, sparse.values, 3, (3, 3))
    given = {"pattern": sparse.pattern, "values": sparse.values, "bias": None, "kernel_size": (3, 3)}
    for name in ("kernel_size", "stride", "padding", "dilation"):
        for wrong in (3, None, (3,), (3.5, 3)):
            with pytest.raises(
                TypeError, match=f"SparseConv2d: {name} is {re.escape(repr(wrong))}, expected two integers"
            ):
                SparseConv2d(**given | {name: wrong})
        with pytest.raises(ValueError, match=rf"SparseConv2d: {name} is \(-1, 1\), expected at least"):
            SparseConv2d(**given | {name: (-1, 1)})
    for wrong in (None, 2.0, "1", True):
        with pytest.raises(TypeError, match=f"SparseConv2d: groups is {wrong!r}, expected an integer"):
            SparseConv2d(**given, groups=wrong)
    for wrong in (0, -1, 2):
        with pytest.raises(ValueError, match=f"SparseConv2d: groups is {wrong}, expected a divisor of 9 channels"):
            SparseConv2d(**given, groups=wrong)
