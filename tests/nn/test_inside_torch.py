"""Sparse layers inside what PyTorch does around layers: autocast, checkpoints, anomaly mode, compilers, meta."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from sparse_ops.nn import SparseConv2d, SparseLinear

TYPES = {nn.Conv2d: SparseConv2d, nn.Linear: SparseLinear}


def networks():
    """(dense, sparse, images, labels)"""
    torch.manual_seed(0)
    convolutions = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.Conv2d(8, 8, 3, stride=2, groups=2)
    dense = nn.Sequential(
        convolutions[0], nn.ReLU(), convolutions[1], nn.Flatten(), nn.Linear(72, 12), nn.GELU(), nn.Linear(12, 5)
    )
    with torch.no_grad():
        for layer in dense:
            if type(layer) in TYPES:
                layer.weight *= torch.rand_like(layer.weight) < 0.3
    layers = [TYPES[type(m)].from_dense(copy.deepcopy(m)) if type(m) in TYPES else copy.deepcopy(m) for m in dense]
    return dense, nn.Sequential(*layers), torch.randn(4, 3, 8, 8), torch.randint(0, 5, (4,))


def step(model, x, labels, call=None):
    """[loss, logits, gradients of the input and of the parameters], dense gradients at the places of nonzeros."""
    model.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = (call or model)(x)
    loss = cross_entropy(y, labels)
    loss.backward()
    found = [loss.detach(), y.detach(), x.grad]
    for layer in model:
        if type(layer) in TYPES:
            found += [layer.weight.grad[layer.weight != 0], layer.bias.grad]
        elif type(layer) in TYPES.values():
            found += [layer.values.grad, layer.bias.grad]
    return found


def assert_same(found, expected, tolerance=1e-5):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a.float(), b.float(), rtol=0, atol=tolerance * float(b.float().abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("of_inputs", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_gives_the_dtypes_of_dense_layers(dtype, of_inputs):
    """Sums are rounded once to the autocast dtype, and seven such layers pass the difference on."""
    dense, sparse, x, labels = networks()

    def cast(model):
        def call(x):
            with torch.autocast("cpu", dtype):
                return model(x)

        return call

    x = x.to(of_inputs)
    expected = step(dense, x, labels, cast(dense))
    assert_same(step(sparse, x, labels, cast(sparse)), expected, 8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(reentrant):
    dense, sparse, x, labels = networks()
    found = step(sparse, x, labels, lambda x: checkpoint(sparse, x, use_reentrant=reentrant))
    assert_same(found, step(dense, x, labels))


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_mode_channels_last_and_clipping():
    dense, sparse, x, labels = networks()
    expected = step(dense, x, labels)
    with torch.autograd.set_detect_anomaly(True):
        assert_same(step(sparse, x, labels), expected)
    last = sparse.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    assert_same(step(*last, labels), expected)
    for layer in dense:
        if type(layer) in TYPES:
            layer.weight.grad *= layer.weight != 0
    norms = [nn.utils.clip_grad_norm_(model.parameters(), 0.1) for model in (sparse, dense)]
    torch.testing.assert_close(*norms)
    torch.testing.assert_close(sparse[0].values.grad, dense[0].weight.grad[dense[0].weight != 0])


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_training(backend):
    dense, sparse, x, labels = networks()
    compiled = torch.compile(sparse, backend=backend, fullgraph=True)
    assert_same(step(sparse, x, labels, compiled), step(dense, x, labels))


def test_meta_tensors_and_empty_copies():
    _, sparse, x, _ = networks()
    meta = copy.deepcopy(sparse).to("meta")
    assert meta(x.to("meta")).shape == (4, 5)
    filled = meta.to_empty(device="cpu")
    filled.load_state_dict(sparse.state_dict())
    assert torch.equal(filled(x), sparse(x))


CHECKED = {
    "linear": (nn.Linear(4, 3), (2, 4)),
    "convolution": (nn.Conv2d(2, 4, 3, padding=1, groups=2, stride=2), (2, 2, 4, 3)),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("name", CHECKED)
def test_gradients_of_every_order_and_mode(name):
    layer, shape = copy.deepcopy(CHECKED[name][0]).double(), CHECKED[name][1]
    with torch.no_grad():
        layer.weight *= torch.rand_like(layer.weight) < 0.5
    sparse = TYPES[type(layer)].from_dense(layer)
    names = [n for n, _ in sparse.named_parameters()]

    def f(x, *parameters):
        return torch.func.functional_call(sparse, dict(zip(names, parameters, strict=True)), (x,))

    given = torch.randn(shape, dtype=torch.float64), *(p.detach().clone() for p in sparse.parameters())
    given = tuple(t.requires_grad_() for t in given)
    assert torch.autograd.gradcheck(f, given, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, given, check_fwd_over_rev=True, check_batched_grad=True)
