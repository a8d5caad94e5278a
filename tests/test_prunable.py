"""Which weights a budget covers, and what is said about the others."""

import pytest
import torch
from small_networks import Transformer, cnn
from torch import nn
from torch.nn.utils import parametrize, prune

from sparse_ops import prunable


def names(model, *args, **options):
    return [w.name for w in prunable.select(model, *args, **options).weights]


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.gain = nn.Parameter(torch.ones(2, 2))


def test_the_default_is_linear_and_convolutions():
    net = cnn()
    net.append(nn.ConvTranspose2d(4, 4, 2))
    net.append(nn.Conv1d(2, 2, 1)), net.append(nn.Conv3d(2, 2, 1)), net.append(nn.Embedding(3, 4))
    selection = prunable.select(net)
    assert [w.name for w in selection.weights] == ["0.weight", "5.weight", "7.weight", "9.weight", "10.weight"]
    assert selection.weights[0].kind == "nn.Conv2d"
    assert selection.skipped["0.bias"] == "bias of nn.Conv2d is not prunable"
    assert selection.skipped["8.weight"] == "weight of nn.ConvTranspose2d is not prunable"
    assert selection.skipped["11.weight"] == "weight of nn.Embedding is not prunable"
    chosen = {w.name for w in selection.weights}
    assert chosen | set(selection.skipped) == {name for name, _ in net.named_parameters()}


def test_a_head_tied_to_an_embedding_is_left_out():
    selection = prunable.select(Transformer())
    found = {w.name for w in selection.weights}
    assert found == {f"encoder.{name}.weight" for name in ("self_attn.out_proj", "linear1", "linear2")}
    assert selection.skipped["embedding.weight"] == "tied to embedding.weight of nn.Embedding, which is not prunable"
    assert selection.skipped["encoder.self_attn.in_proj_weight"].startswith("in_proj_weight of nn.MultiheadAttention")


def test_a_tied_weight_counts_once():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    assert prunable.select(net).numel == 9
    assert names(net) == ["0.weight"]
    with pytest.raises(ValueError, match="no prunable weights"):
        names(net, exclude="1")


@pytest.mark.parametrize(
    "chosen, expected",
    [
        (nn.Linear, ["5.weight", "7.weight"]),
        ([nn.Conv2d, "7"], ["0.weight", "7.weight"]),
        ("[57].weight", ["5.weight", "7.weight"]),
        (lambda name, module: getattr(module, "out_features", 0) == 4, ["7.weight"]),
        ("1.weight", ["1.weight"]),
    ],
)
def test_prunable_and_exclude(chosen, expected):
    net = cnn()
    assert names(net, chosen) == expected
    if len(expected) > 1:
        assert names(net, chosen, expected[0]) == expected[1:]
        assert prunable.select(net, chosen, expected[0]).skipped[expected[0]] == "excluded by exclude="


def test_other_types_by_registration(monkeypatch):
    monkeypatch.setattr(prunable, "_registered", dict(prunable._registered))
    net = nn.Sequential(Scaled(), nn.Linear(2, 2))
    assert names(net) == ["1.weight"]
    prunable.register(Scaled, "gain")
    assert names(net) == ["0.gain", "1.weight"]
    with pytest.raises(TypeError, match="module_type is 'Scaled'"):
        prunable.register("Scaled")


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_what_cannot_be_pruned_has_its_reason():
    net = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(5)), nn.Linear(0, 4), nn.LazyLinear(3))
    net[1].weight.requires_grad_(False)
    net[2].weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    parametrize.register_parametrization(net[3], "weight", nn.Identity())
    net[4] = nn.utils.parametrizations.weight_norm(net[4])
    selection = prunable.select(net)
    assert [w.name for w in selection.weights] == ["0.weight"]
    reasons = selection.skipped
    assert "frozen" in reasons["1.weight"]
    assert "torch.int8" in reasons["2.weight"]
    assert "parametrized" in reasons["3.parametrizations.weight.original"]
    assert "parametrized" in reasons["4.parametrizations.weight.original1"]
    assert reasons["5.weight"] == "it is empty, (4, 0)"
    assert "no shape yet" in reasons["6.weight"]


def test_a_layer_under_torch_prune_is_refused_with_the_way_out():
    net = cnn()
    prune.l1_unstructured(net[5], "weight", 0.5)
    with pytest.raises(ValueError, match=r"5.weight_orig: pruned by torch.nn.utils.prune.*remove\(module, 'weight'\)"):
        prunable.select(net)
    assert names(net, exclude="5") == ["0.weight", "7.weight"]
    prune.remove(net[5], "weight")
    assert sorted(names(net)) == ["0.weight", "5.weight", "7.weight"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
def test_names_lose_the_prefixes_of_wrappers():
    net = cnn()
    wrapped = nn.DataParallel(nn.Sequential(torch.compile(net)))
    assert names(wrapped) == ["0.0.weight", "0.5.weight", "0.7.weight"]
    assert names(torch.compile(net)) == names(net)
    ambiguous = nn.ModuleDict({"module": nn.ModuleDict({"fc": nn.Linear(2, 2)}), "fc": nn.Linear(2, 2)})
    assert names(ambiguous) == ["module.fc.weight", "fc.weight"]


def test_errors_name_the_culprit():
    net = cnn()
    with pytest.raises(ValueError, match=r"prunable='5.weigt' matches nothing in Sequential; the nearest.*'5.weight'"):
        prunable.select(net, "5.weigt")
    with pytest.raises(TypeError, match="exclude= holds 3; expected a predicate"):
        prunable.select(net, exclude=[3])
    with pytest.raises(ValueError, match=r"BatchNorm2d has no prunable weights \(bias: bias of nn.BatchNorm2d"):
        prunable.select(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="it has no parameters"):
        prunable.select(nn.ReLU())
    with pytest.raises(ValueError, match=r"Linear has no prunable weights.*frozen"):
        prunable.select(nn.Linear(2, 2).requires_grad_(False))
    views = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    views[1].weight = nn.Parameter(views[0].weight.detach()[1:3])
    with pytest.raises(ValueError, match=r"0\.weight and 1\.weight are different parameters over the same memory"):
        prunable.select(views)
