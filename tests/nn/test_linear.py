"""SparseLinear against the nn.Linear it was made of: values, gradients, and life inside PyTorch."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from sparse_ops import extension, launch
from sparse_ops.formats import Pattern
from sparse_ops.nn import SparseLinear
from sparse_ops.ops.csr_spmm import csr_spmm


def pair(in_features=20, out_features=12, bias=True, dtype=torch.float32, sparsity=0.8, seed=0):
    """(dense, sparse) of one random layer."""
    torch.manual_seed(seed)
    linear = nn.Linear(in_features, out_features, bias=bias, dtype=dtype)
    with torch.no_grad():
        linear.weight *= torch.rand_like(linear.weight) >= sparsity
    return linear, SparseLinear.from_dense(linear)


@pytest.mark.parametrize("shape", [(20,), (1, 20), (7, 20), (2, 3, 4, 20), (0, 20), (2, 0, 20)])
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_equal_the_dense_layer(shape, bias):
    linear, sparse = pair(bias=bias, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(t) for layer, t in zip((linear, sparse), inputs, strict=True)]
    torch.testing.assert_close(outputs[1], outputs[0])
    dy = torch.randn_like(outputs[0])
    expected = torch.autograd.grad(outputs[0], [inputs[0], linear.weight], dy)
    dx, dvalues = torch.autograd.grad(outputs[1], [inputs[1], sparse.values], dy)
    torch.testing.assert_close(dx, expected[0])
    torch.testing.assert_close(dvalues, sparse.pattern.gather(expected[1]))


def test_bias_is_shared_and_trained():
    linear, sparse = pair()
    assert sparse.bias is linear.bias
    sparse(torch.ones(3, 20)).sum().backward()
    assert torch.equal(linear.bias.grad, torch.full((12,), 3.0))


def test_weight_is_the_dense_matrix_and_read_only():
    linear, sparse = pair()
    assert torch.equal(sparse.weight, linear.weight)
    with pytest.raises(AttributeError, match=r"SparseLinear\.weight is read-only"):
        sparse.weight = linear.weight
    assert torch.equal(sparse.to_dense().weight, linear.weight)
    assert sparse.to_dense().bias is linear.bias
    assert "nnz=" in repr(sparse) and "20, 12" in repr(sparse)


def test_weight_pruned_by_torch():
    linear, _ = pair(sparsity=0.0)
    prune.l1_unstructured(linear, "weight", amount=0.9)
    with torch.no_grad():
        linear.weight_orig.add_(1.0)  # as an optimiser step: `weight` is stale until the next forward
    sparse = SparseLinear.from_dense(linear)
    x = torch.randn(5, 20)
    torch.testing.assert_close(sparse(x), linear(x))
    assert sparse.nnz == 24


def test_flags_are_kept():
    linear, _ = pair()
    linear.weight.requires_grad_(False)
    sparse = SparseLinear.from_dense(linear.eval())
    assert not sparse.values.requires_grad and not sparse.training
    assert not sparse.to_dense().weight.requires_grad and not sparse.to_dense().training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_the_autocast_dtype(dtype):
    linear, sparse = pair()
    x = torch.randn(6, 20)
    with torch.autocast("cpu", dtype=dtype):
        expected, y = linear(x), sparse(x)
        y.float().sum().backward()
    assert y.dtype == expected.dtype == dtype
    torch.testing.assert_close(y, expected, rtol=2 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps)
    assert sparse.values.grad.dtype == torch.float32


def test_keeps_the_batch_innermost():
    linear, sparse = pair()
    for n in (1, 5, 16, 64):
        x = torch.randn(20, n).t()
        y = sparse(x)
        assert y.t().is_contiguous() and y.shape == (n, 12)
        torch.testing.assert_close(y, linear(x))
    assert sparse(torch.randn(20, 6).t().unflatten(0, (2, 3))).shape == (2, 3, 12)


def test_copies_conversions_and_moves():
    _, sparse = pair()
    x = torch.randn(4, 20)
    for twin in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
        assert torch.equal(twin(x), sparse(x))
        assert twin.values.data_ptr() != sparse.values.data_ptr()
    assert copy.deepcopy(sparse).double()(x.double()).dtype == torch.float64
    half = copy.deepcopy(sparse).to(torch.bfloat16)
    assert half(x.bfloat16()).dtype == torch.bfloat16
    assert half.columns.dtype == torch.int32


def test_state_dict_round_trip_also_to_another_pattern():
    _, source = pair()
    assert list(source.state_dict()) == ["values", "bias", "row_offsets", "columns"]
    _, target = pair(sparsity=0.5, seed=1)
    parameter, x = target.values, torch.randn(4, 20)
    target.load_state_dict(source.state_dict())
    assert target.values is parameter  # an optimiser may hold it
    assert torch.equal(target(x), source(x))
    with torch.no_grad():
        source.values.add_(1.0)
    assert not torch.equal(target(x), source(x))
    target(x.requires_grad_()).sum().backward()
    torch.testing.assert_close(x.grad, target.weight.sum(0).expand(4, 20))
    assigned = pair(sparsity=0.5, seed=1)[1]
    assigned.load_state_dict(source.state_dict(), assign=True)
    assert assigned.values.data_ptr() == source.values.data_ptr()


@pytest.mark.parametrize("masked", [False, True])
def test_state_dict_of_a_dense_model(masked):
    linear, expected = pair(seed=3)
    if masked:
        prune.custom_from_mask(linear, "weight", linear.weight != 0)
    model = nn.Sequential(nn.ReLU(), pair(sparsity=0.5)[1])
    model.load_state_dict(nn.Sequential(nn.ReLU(), linear).state_dict())
    assert model[1].nnz == expected.nnz
    assert torch.equal(model[1].weight, expected.weight)


def test_state_dict_that_does_not_fit():
    _, sparse = pair()
    before = copy.deepcopy(sparse.state_dict())
    broken = dict(before) | {"columns": before["columns"] + 20}
    for state, message in [
        (broken, "expected 0 to 19"),
        ({"weight": torch.ones(3, 3), "bias": before["bias"]}, r"the dense weight is \(3, 3\), expected \(12, 20\)"),
        ({k: v for k, v in before.items() if k != "columns"}, "Missing key.*columns"),
        (dict(before) | {"values": before["values"][1:]}, "the pattern holds"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            sparse.load_state_dict(state)
    assert all(torch.equal(before[k], v) for k, v in sparse.state_dict().items())


def test_compiles_as_one_graph_forward_and_backward():
    linear, sparse = pair()
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager")
    for batch in (4, 7):
        x, y = (torch.ones(batch, 20, requires_grad=True) for _ in range(2))
        compiled(x).square().sum().backward()
        linear(y).square().sum().backward()
        torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(sparse.values.grad, sparse.pattern.gather(linear.weight.grad))


def test_exports_and_loads_back():
    _, sparse = pair()
    x = torch.randn(4, 20)
    program = torch.export.export(sparse, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    assert torch.equal(loaded(x), sparse(x))
    assert torch.equal(loaded(x[:3]), sparse(x[:3]))


def test_trains_with_any_optimiser():
    linear, sparse = pair(bias=False)
    x, mask = torch.randn(8, 20), linear.weight.detach() != 0
    for layer in (linear, sparse):
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        for _ in range(3):
            layer(x).square().sum().backward()
            if layer is linear:
                linear.weight.grad *= mask
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(sparse.weight, linear.weight)


def test_names_the_culprit():
    _, sparse = pair()
    with pytest.raises(
        ValueError, match=r"SparseLinear: x is \(4, 19\), expected \(..., 20\): the layer's in_features is 20"
    ):
        sparse(torch.ones(4, 19))
    with pytest.raises(TypeError, match=r"SparseLinear: x is torch\.float64, the layer.s values are torch\.float32"):
        sparse(torch.ones(4, 20, dtype=torch.float64))
    pattern = Pattern.from_mask(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"values are \(5,\), the pattern holds 6"):
        SparseLinear(pattern, torch.ones(5))
    with pytest.raises(ValueError, match=r"bias is \(3,\), expected \(2,\)"):
        SparseLinear(pattern, torch.ones(6), torch.ones(3))
    for wrong, text in ((None, "None"), (3, "3"), ("x", "'x'"), ([1.0], "a list"), (nn.Linear(2, 2), "a Linear")):
        with pytest.raises(TypeError, match=f"SparseLinear: pattern is {text}, expected a Pattern; .*from_dense"):
            SparseLinear(wrong)
        with pytest.raises(TypeError, match=f"SparseLinear: values is {text}, expected a Tensor; .*from_dense"):
            SparseLinear(pattern, wrong)
        if wrong is not None:
            with pytest.raises(TypeError, match=f"SparseLinear: bias is {text}, expected a Tensor or None"):
                SparseLinear(pattern, torch.ones(6), wrong)
        if not isinstance(wrong, nn.Linear):
            with pytest.raises(
                TypeError, match=rf"SparseLinear\.from_dense: linear is {text}, expected a torch.nn.Lin"
            ):
                SparseLinear.from_dense(wrong)
        for context in (torch.enable_grad, torch.no_grad):
            with (
                context(),
                pytest.raises(TypeError, match=rf"SparseLinear: x is {text}, expected a Tensor \(..., 20\)"),
            ):
                sparse(wrong)
    with pytest.raises(TypeError, match=r"SparseLinear: values is torch\.int64, expected a floating point tensor"):
        SparseLinear(pattern, torch.ones(6, dtype=torch.int64))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=r"SparseLinear: x is torch\.int64"):
        sparse(torch.ones(4, 20, dtype=torch.int64))


@pytest.mark.skipif(extension.failure() is not None, reason="no C++ kernels")
class TestOneCall:
    """Without autograd a layer is one call of C++, where nothing forbids it."""

    @pytest.fixture
    def calls(self, monkeypatch):
        """How often csr_spmm, the usual way, was called by a layer."""
        made = []

        def counted(*arguments):
            made.append(arguments)
            return csr_spmm(*arguments)

        monkeypatch.setattr("sparse_ops.nn.linear.csr_spmm", counted)
        return made

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("bias", [True, False])
    def test_agrees_with_float64_in_every_shape(self, dtype, bias, calls):
        _, sparse = pair(bias=bias, dtype=dtype)
        weight = copy.deepcopy(sparse.to_dense()).double()
        batch_last = torch.randn(20, 7).t()
        for x in (*(torch.randn(s) for s in [(20,), (1, 20), (7, 20), (2, 3, 4, 20), (0, 20), (2, 0, 20)]), batch_last):
            x = x.to(dtype)
            with torch.inference_mode():
                y = sparse(x)
            assert y.dtype == dtype and y.is_contiguous() == x.is_contiguous()
            torch.testing.assert_close(
                y.double(), weight(x.double()), rtol=2.0**-7, atol=1e-2 if dtype.itemsize == 2 else 1e-5
            )
            assert not y.requires_grad
        assert not calls

    def test_sees_values_and_patterns_that_change(self, calls):
        _, sparse = pair()
        x = torch.randn(3, 20)
        with torch.no_grad():
            before = sparse(x)
            sparse.values.mul_(2.0)
            sparse.bias.mul_(2.0)
            assert torch.equal(sparse(x), 2 * before)
            sparse.values.data = sparse.values.data / 2
            torch.testing.assert_close(sparse(x), before + sparse.bias / 2)
            other, sparse_other = pair(sparsity=0.5, seed=1)
            sparse.load_state_dict(sparse_other.state_dict())
            torch.testing.assert_close(sparse(x), other(x))
            swapped = torch.func.functional_call(sparse, {"values": torch.zeros_like(sparse.values)}, (x,))
            assert torch.equal(swapped, sparse.bias.expand(3, 12))
        assert len(calls) == 1  # the last one

    def test_goes_the_usual_way_where_it_has_to(self, calls):
        linear, sparse = pair()
        x = torch.randn(3, 20)
        expected = linear(x).detach()
        torch.testing.assert_close(sparse(x).detach(), expected)
        assert len(calls) == 1  # autograd
        with torch.no_grad():
            with torch.autocast("cpu", torch.bfloat16):
                assert sparse(x).dtype == torch.bfloat16
            with launch.forced("reference"):
                torch.testing.assert_close(sparse(x), expected)
            torch.testing.assert_close(torch.vmap(sparse)(x[None])[0], expected)
            gaps = torch.stack([x, x], -1)[..., 0]
            torch.testing.assert_close(sparse(gaps), expected)
            for bad in (torch.randn(3, 19), x.double(), torch.tensor(1.0)):
                with pytest.raises((ValueError, TypeError), match=r"SparseLinear|csr_spmm"):
                    sparse(bad)
            prune.identity(sparse, "bias")
            torch.testing.assert_close(sparse(x), expected)
            prune.identity(sparse, "values")
            torch.testing.assert_close(sparse(x), expected)
        assert len(calls) == 7  # a wrong shape or dtype is the layer's own error
