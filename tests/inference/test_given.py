"""Where a model's own code is quicker than every graph of its ops, a copy of the model is what runs."""

import copy

import pytest
import torch
from inference.networks import prune
from inference.test_optimize import assert_close
from torch import nn
from torch.nn.utils import prune as torch_prune

from sparse_ops.inference import export, load_exported, optimize, optimize_for_inference


class Model(nn.Module):
    """Its arguments and results have a structure, and one argument is a flag."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(24, 16), nn.Linear(16, 5)
        self.drop = nn.Dropout(0.5)
        self.calls = 0

    def forward(self, pair, scale=1.0, *, negate=False):
        self.calls += 1
        y = self.drop(torch.relu(self.a(pair[0]))) * scale + pair[1]
        return {"y": -self.b(y) if negate else self.b(y), "hidden": [y]}


def example(n=4):
    return {"pair": (torch.randn(n, 24), torch.randn(n, 16)), "negate": True}


@pytest.fixture
def quick_by(monkeypatch):
    """Let the model itself take this share of the time of each graph."""

    def share(of_a_graph):
        monkeypatch.setattr(
            optimize, "_times", lambda networks, *_: {name: of_a_graph if name == "given" else 1.0 for name in networks}
        )

    return share


def test_a_copy_of_the_model_runs_where_it_is_quicker(quick_by):
    quick_by(0.9)
    torch.manual_seed(0)
    model = prune(Model()).train()
    network = optimize_for_inference(model, example())
    report = network.report()
    assert report.chosen == "given" and report.ms["given"] == 0.9 and report.ms["dense"] == 1
    assert "runs as given" in str(report) and "Linear(in_features=24" in repr(network)
    assert report.bytes == report.dense_bytes and model.training and model.a.weight.requires_grad
    assert model.calls < 10  # it is a copy that is timed
    own = {t.data_ptr() for t in network.state_dict().values()}
    assert own and not own & {t.data_ptr() for t in model.state_dict().values()}
    for n in (4, 1, 7):
        x = example(n)
        expected = copy.deepcopy(model).eval()(**x)
        assert_close(network(**x), {"y": expected["y"].detach(), "hidden": [expected["hidden"][0].detach()]}, 0.0)
        assert not network(**x)["y"].requires_grad
    with pytest.raises(ValueError, match="argument negate is False"):
        network(example()["pair"])
    assert_close(copy.deepcopy(network)(**x), network(**x), 0.0)


def test_a_graph_runs_where_the_model_is_hardly_quicker(quick_by):
    quick_by(0.96)
    report = optimize_for_inference(Model(), example()).report()
    assert report.chosen == "dense" and report.ms["given"] == 0.96


def test_a_file_holds_a_graph(quick_by, tmp_path):
    quick_by(0.5)
    torch.manual_seed(0)
    model, x = prune(Model()), example()
    network = optimize_for_inference(model, x)
    for source in (network, model):
        written = export(source, x, tmp_path / "network.pt2")
        assert written.report().chosen != "given" and len(written.layers()) == 2
        assert_close(load_exported(tmp_path / "network.pt2")(**x), network(**x), 1e-6)


def test_a_masked_model_is_copied(quick_by):
    quick_by(0.5)
    model, x = Model().eval(), example()
    torch_prune.random_unstructured(model.a, "weight", 0.5)
    network = optimize_for_inference(model, x)
    assert network.report().chosen == "given"
    assert torch.equal(network(**x)["y"], model(**x)["y"])


class Uncopyable(Model):
    def __deepcopy__(self, memo):
        raise TypeError("not this one")


class OtherWithoutGradients(Model):
    """As torch's encoder, which gives zeros at padded positions without gradients: it is not what is captured."""

    def forward(self, pair, scale=1.0, *, negate=False):
        return super().forward(pair, 2 * scale if torch.is_inference_mode_enabled() else scale, negate=negate)


@pytest.mark.parametrize("case", ["hook", "dtype", "uncopyable", "differs"])
def test_a_graph_runs_where_the_model_cannot_stand_for_itself(case, quick_by):
    quick_by(0.5)
    model = {"uncopyable": Uncopyable, "differs": OtherWithoutGradients}.get(case, Model)()
    if case == "hook":
        model.a.register_forward_hook(lambda *_: None)
    report = optimize_for_inference(model, example(), dtype="bfloat16" if case == "dtype" else "float32").report()
    assert report.chosen == "dense" and "given" not in report.ms
