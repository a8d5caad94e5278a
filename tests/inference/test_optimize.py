"""optimize_for_inference computes what the model computes, in every form and layout, and keeps no dense copy."""

import copy
import subprocess
import sys

import pytest
import torch
from inference.networks import cases, prune
from torch import nn
from torch.utils import _pytree as pytree

import sparse_ops
from sparse_ops.inference import InferenceNetwork, optimize_for_inference

NAMES = ["resnet8", "bottleneck", "gated", "odd", "mlp", "encoder"]
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


def case(name):
    return cases()[name]


def call(model, example):
    with torch.no_grad():
        return model(**example) if isinstance(example, dict) else model(example)


def poison(network):
    """NaN in all memory that the network will use again."""
    for block in network._recycler._blocks:
        torch.empty(0).set_(block).fill_(float("nan"))


def assert_close(found, wanted, relative):
    a, b = pytree.tree_leaves(found), pytree.tree_leaves(wanted)
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        torch.testing.assert_close(x.double(), y.double(), rtol=0, atol=relative * float(y.abs().max()))


@pytest.mark.parametrize("form", ["dense", "sparse", "batch_last"])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_model_in_float64(name, form, forms):
    """Sums of at most 800 products in float32, over 11 layers that keep the scale: 1e-5 of the largest output."""
    forms(form)
    model, example = case(name)
    network = optimize_for_inference(model, example)
    wanted = call(copy.deepcopy(model).double(), pytree.tree_map_only(torch.Tensor, torch.Tensor.double, example))
    wanted = pytree.tree_map_only(torch.Tensor, torch.Tensor.float, wanted)
    assert_close(call(network, example), wanted, 1e-5)
    poison(network)
    with torch.inference_mode():
        assert_close(call(network, example), wanted, 1e-5)
    layers = network.layers()
    has_form = form != "batch_last" or name != "encoder"  # whose tensors have three dimensions throughout
    assert any(layer.sparse_form for _, layer in layers) == (form != "dense" and has_form)
    assert all((layer.weight is None) == layer.sparse_form for _, layer in layers)
    report = network.report()
    assert report.bytes <= sum(t.nbytes for t in network.state_dict().values())
    if form == "batch_last" and has_form:
        assert sum(row.batch_last for row in report.layers) >= 2


@pytest.mark.parametrize("form", ["dense", "batch_last"])
@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_differs_by_its_rounding(name, form, forms):
    """Each layer rounds its weights and outputs to 8 bits, 2**-9 relative; over a dozen layers a few per cent."""
    forms(form)
    model, example = case(name)
    network = optimize_for_inference(model, example, dtype="bfloat16")
    assert_close(call(network, example), call(model, example), 0.05)
    assert all(layer.bias is None or layer.bias.dtype == torch.bfloat16 for _, layer in network.layers())


def test_norms_activations_and_additions_are_inside_the_layers(forms):
    forms("batch_last")
    model, example = case("bottleneck")
    network = optimize_for_inference(model, example)
    targets = [str(node.target) for node in network.graph.graph.nodes if node.op == "call_function"]
    assert not [t for t in targets if "norm" in t or "relu" in t or "aten.add" in t], targets
    turns = [t for t in targets if "batch_last" in t or "plain" in t]
    assert len(turns) == 3, targets  # at the images and around the classifier; the mean over pixels takes any layout


def test_leaves_the_model_alone_and_shares_nothing(forms):
    forms("sparse")
    model, example = case("gated")
    state = copy.deepcopy(model.state_dict())
    network = optimize_for_inference(model.train(), example)
    assert model.training
    model.eval()
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    own = {t.data_ptr() for t in network.state_dict().values()}
    assert not own & {t.data_ptr() for t in model.state_dict().values()}


def test_another_batch_and_other_sizes(forms):
    forms("batch_last")
    model, example = case("resnet8")
    network = optimize_for_inference(model, example)
    for n in (1, 3, 40):
        x = torch.randn(n, 3, 16, 16)
        assert_close(network(x), call(model, x), 1e-5)
    with pytest.raises(ValueError, match=r"argument x is \(16, 3, 16, 17\), this network is for \('any number', 3"):
        network(torch.randn(16, 3, 16, 17))
    with pytest.raises(ValueError, match="train the model itself"):
        network.train()
    assert "sparse" in repr(network) and "batch last" in str(network.report())


def test_takes_a_sparsified_model(forms):
    forms("sparse")
    model, example = case("mlp")
    sparse = sparse_ops.sparsify(model, example, policy="all", verbose=False)
    network = optimize_for_inference(sparse, example)
    assert_close(call(network, example), call(model, example), 1e-5)
    assert isinstance(network, InferenceNetwork)


def test_dense_weights_stay_dense():
    model, example = prune(copy.deepcopy(case("mlp")[0]), 0.0), case("mlp")[1]
    network = optimize_for_inference(model, example)
    assert not any(layer.sparse_form for _, layer in network.layers())
    assert network.report().chosen == "dense"


class DependsOnValues(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_bad_arguments():
    model, example = nn.Sequential(nn.Flatten(), nn.Linear(48, 7)), torch.randn(2, 3, 4, 4)
    with pytest.raises(TypeError, match="model is of type str"):
        optimize_for_inference("model", example)
    with pytest.raises(ValueError, match="dtype is 'float8'"):
        optimize_for_inference(model, example, dtype="float8")
    with pytest.raises(TypeError, match="the example is a list"):
        optimize_for_inference(model, [example])
    with pytest.raises(TypeError, match="without a tensor"):
        optimize_for_inference(model, 3)
    with pytest.raises(ValueError, match="Sequential failed on the example"):
        optimize_for_inference(model, torch.randn(2, 5))
    with pytest.raises(ValueError, match="DependsOnValues cannot be captured"):
        optimize_for_inference(DependsOnValues(), torch.randn(2))


def test_runs_inside_of_torch_compile():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    x = torch.randn(4, 3, 8, 8)
    network = optimize_for_inference(model, x)
    with torch.no_grad():
        assert torch.allclose(torch.compile(network, backend="aot_eager")(x), model(x), atol=1e-5)


def test_holds_no_weight_of_attention_twice(forms):
    forms("dense")
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    report = optimize_for_inference(model, torch.randn(2, 3, 16)).report()
    assert report.bytes == report.dense_bytes


def test_padded_positions_of_an_encoder_are_those_of_torch_with_gradients():
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True).eval()
    x, padding = torch.randn(3, 6, 16), torch.zeros(3, 6, dtype=torch.bool)
    padding[:, 4:] = True
    network = optimize_for_inference(model, {"src": x, "src_key_padding_mask": padding})
    with torch.enable_grad():
        expected = model(x, src_key_padding_mask=padding)
    assert_close(network(src=x, src_key_padding_mask=padding), expected.detach(), 1e-5)


@pytest.mark.parametrize("mask", ["causal", "another"])
def test_a_mask_whose_values_torch_would_look_at(mask):
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True), 2).eval()
    x = torch.randn(3, 6, 16)
    found = nn.Transformer.generate_square_subsequent_mask(6) if mask == "causal" else torch.randn(6, 6)
    network = optimize_for_inference(model, {"src": x, "mask": found})
    assert_close(network(src=x, mask=found), model(x, found).detach(), 1e-5)
    other = torch.randn(6, 6)
    assert_close(network(src=x, mask=other), model(x, other).detach(), 1e-5)  # nothing of the example's is in the graph
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32, 0.0, batch_first=True), 1).eval()
    network = optimize_for_inference(decoder, {"tgt": x, "memory": x, "tgt_mask": found})
    assert_close(network(tgt=x, memory=x, tgt_mask=found), decoder(x, x, found).detach(), 1e-5)


class Unrolled(nn.Module):
    """One weight used at every step."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, x):
        for _ in range(6):
            x = torch.tanh(self.inner(x))
        return self.outer(x)


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_a_weight_used_often_is_held_once(form, forms):
    forms(form)
    model = prune(Unrolled()).eval()
    x = torch.randn(4, 64)
    network = optimize_for_inference(model, x)
    assert_close(network(x), call(model, x), 1e-5)
    report = network.report()
    assert len(report.layers) == 7 and report.bytes <= report.dense_bytes * (1 if form == "dense" else 0.35)


class Plus(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(24, 24)

    def forward(self, x, r):
        return self.layer(x) + r


@pytest.mark.parametrize("form", ["dense", "sparse"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.bfloat16, torch.bool], ids=str)
def test_an_addend_of_another_dtype(dtype, form, forms):
    forms(form)
    torch.manual_seed(0)
    model, x, r = prune(Plus()), torch.randn(4, 24), torch.randn(4, 24).mul(3).to(dtype)
    network = optimize_for_inference(model, (x, r))
    found, wanted = network(x, r), model(x, r).detach()
    assert found.dtype == wanted.dtype
    torch.testing.assert_close(found.double(), wanted.double(), rtol=0, atol=1e-5)


class Tied(nn.Module):
    """Two linear layers and two convolutions with one weight, an embedding that is the last layer's weight."""

    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(30, 16), nn.Linear(16, 30)
        self.out.weight = self.embedding.weight
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        self.b.weight = self.a.weight
        self.c, self.d = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1)
        self.d.weight = self.c.weight

    def forward(self, i):
        x = self.d(self.c(self.embedding(i)[:, None]).relu())[:, 0]
        return self.out(self.b(self.a(x).relu()))


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_weights_that_modules_share(form, forms, tmp_path):
    forms(form)
    torch.manual_seed(0)
    model, i = Tied().eval(), torch.randint(0, 30, (4, 7))
    prune(model, 0.6)
    network = sparse_ops.export(model, i, tmp_path / "network.pt2")
    for found in (network, sparse_ops.load_exported(tmp_path / "network.pt2")):
        assert_close(found(i), call(model, i), 1e-5)
    report = network.report()
    assert len(report.layers) == 5 and (form == "sparse" or report.bytes == report.dense_bytes)


def test_a_model_that_rounds_inside_may_differ_by_its_rounding():
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(128, 256).bfloat16(), nn.Linear(256, 128)

        def forward(self, x):
            return self.b(torch.relu(self.a(x.bfloat16())).float())

    torch.manual_seed(0)
    assert 1e-3 < optimize_for_inference(Inside().eval(), torch.randn(8, 128)).report().error < 0.05


def test_dtype_holds_for_models_without_a_layer_of_ours():
    model = nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 3)).eval()
    x = torch.randn(2, 4, 20)
    network = optimize_for_inference(model, x, dtype="bfloat16")
    assert {t.dtype for t in network.graph.parameters()} == {torch.bfloat16} and network(x).dtype == torch.float32
    assert_close(network(x), call(model, x), 0.05)


def test_a_model_that_changes_its_input_leaves_the_example_alone():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, x):
            return self.layer(x.mul_(2))

    model, x = InPlace().eval(), torch.randn(4, 8)
    before = x.clone()
    network = optimize_for_inference(model, x)
    assert torch.equal(x, before)
    assert_close(network(before.clone()), model.layer(2 * before).detach(), 1e-5)


MEMORY = """
import gc, weakref
import torch
from sparse_ops.inference import optimize_for_inference

model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 256)).eval()
gc.disable()
with torch.no_grad():
    for layer in model[::2]:
        layer.weight *= torch.rand_like(layer.weight) < 0.05
ours = optimize_for_inference(model, torch.randn(4, 256))
kept = [weakref.ref(layer.weight) for layer in model[::2]]
del model, layer
assert [weight() for weight in kept] == [None, None]
"""


def test_the_model_does_not_stay():
    """Graphs are cycles: it would stay without a collection. A process of its own, since pytest's log keeps it too."""
    subprocess.run([sys.executable, "-c", MEMORY], check=True, timeout=120)
