"""Copies and averages of a model whose thresholds are trained: they outlive finalize, and bake into plain networks."""

import copy

import pytest
import torch
from method_runs import OPTIMIZERS, Run
from small_networks import NETWORKS, batches
from torch import nn
from torch.optim.swa_utils import AveragedModel

import sparse_ops
from sparse_ops import methods

pytestmark = pytest.mark.filterwarnings("ignore::sparse_ops.methods.CollapseWarning")
REPARAMETRIZED = [name for name in methods.names() if methods.get(name).reparametrized]
X = next(batches("cnn", 1))[0]


def trained(name):
    """A run of some epochs, with a copy from before the first and an average over them."""
    run = Run(methods.get(name), OPTIMIZERS["ours sgd"], controller=False)
    snapshot, average = copy.deepcopy(run.net), AveragedModel(run.net)
    for _ in range(2):
        run.epoch()
        average.update_parameters(run.net)
    for form in run.method.forms.forms.values():  # far enough for zeros, in so short a run
        with torch.no_grad():
            form.raw.add_(2.0)
    average.update_parameters(run.net)
    return run, snapshot, average


def by_hand(net):
    """The network's plain twin with the weights in use."""
    plain = NETWORKS["cnn"]()
    used = {f"{i}.weight": net[i].weight.detach() for i in (0, 5, 7)}
    rest = {key: value for key, value in net.state_dict().items() if "parametrizations" not in key}
    plain.load_state_dict(rest | used)
    return plain.train(net.training)


@pytest.mark.parametrize("name", REPARAMETRIZED)
@pytest.mark.parametrize("end", ["finalize", "detach"])
def test_copies_work_on_after_the_model_is_plain(name, end):
    run, snapshot, average = trained(name)
    best = copy.deepcopy(run.net)
    copies = [net.eval() for net in (snapshot, average.module, best)]
    before = [net(X) for net in copies]
    assert not torch.equal(before[0], before[2])
    getattr(run.method, end)()
    assert type(run.net[5]) is nn.Linear
    for net, expected in zip(copies, before, strict=True):
        assert torch.equal(net(X), expected)
        assert torch.equal(copy.deepcopy(net)(X), expected)
    torch.nn.functional.mse_loss(best(X), torch.ones(16, 4)).backward()
    assert best[5].parametrizations.weight[0].raw.grad is not None, "thresholds of a copy still learn"


@pytest.mark.parametrize("name", REPARAMETRIZED)
def test_a_baked_average_is_a_plain_network_with_exact_zeros(name, tmp_path):
    run, _, average = trained(name)
    ema = average.module.eval()
    expected, twin = ema(X), by_hand(ema)
    parameters = {id(p) for p in ema.parameters()}
    assert methods.bake(ema) is ema
    assert torch.equal(ema(X), expected)
    assert list(ema.state_dict()) == list(NETWORKS["cnn"]().state_dict())
    assert [n for n, _ in ema.named_parameters()] == [n for n, _ in NETWORKS["cnn"]().named_parameters()]
    assert {id(p) for p in ema.parameters()} < parameters and type(ema[0]) is nn.Conv2d
    for key, value in twin.state_dict().items():
        assert torch.equal(ema.state_dict()[key], value), key
    assert sparse_ops.sparsity_report(ema).sparsity > 0.1
    sparse = sparse_ops.sparsify(ema, policy="all", verbose=False)
    assert type(sparse[5]) is sparse_ops.nn.SparseLinear
    torch.testing.assert_close(sparse(X), expected, rtol=1e-5, atol=1e-6)
    sparse_ops.save(sparse, tmp_path / "ema.safetensors")
    again = sparse_ops.load(tmp_path / "ema.safetensors", NETWORKS["cnn"]()).eval()
    assert torch.equal(again(X), sparse(X))
    torch.save(ema, tmp_path / "whole.pt")
    run.epoch()  # the model itself trains on
    run.method.finalize()
    assert methods.bake(ema) is ema and torch.equal(ema(X), expected), "plain already"


def test_a_tied_weight_is_baked_once():
    net = NETWORKS["cnn"]()
    net.insert(5, nn.Linear(72, 72, bias=False))
    net.insert(6, nn.Linear(72, 72, bias=False))
    net[6].weight = net[5].weight
    optimizer = sparse_ops.optim.SGD(net.parameters(), lr=0.1)
    methods.STR(net, optimizer, 0.5, 1, total_steps=4, initial_threshold=-3.0, controller=False)
    twin = copy.deepcopy(net).eval()
    expected = twin(X)
    methods.bake(twin)
    assert torch.equal(twin(X), expected) and twin[5].weight is twin[6].weight
    assert 0 < int((twin[5].weight == 0).sum()) < 72 * 72


def test_a_weight_that_somebody_else_parametrized_stays_so():
    net = NETWORKS["cnn"]()
    nn.utils.parametrizations.weight_norm(net[5], "bias", dim=0)
    optimizer = sparse_ops.optim.SGD(net.parameters(), lr=0.1)
    twin = copy.deepcopy(net).eval()
    method = methods.STR(net, optimizer, 0.5, 1, total_steps=4, initial_threshold=-3.0, controller=False)
    twin(X)
    baked = methods.bake(copy.deepcopy(net)).eval()
    method.finalize()
    assert torch.equal(baked(X), net.eval()(X)) and set(baked[5].parametrizations) == {"bias"}


@pytest.mark.parametrize("name", REPARAMETRIZED)
def test_what_needs_a_plain_network_says_so(name, tmp_path):
    run = Run(methods.get(name), OPTIMIZERS["ours sgd"], controller=False)
    ema = AveragedModel(run.net)
    for model, where in ((run.net, "0"), (ema, r"module\.0"), (run.net[5], "the model")):
        kind = "Linear" if model is run.net[5] else "Conv2d"
        told = rf"the weight of {where} \({kind}\) is still parametrized .* finalize\(\) .* sparse_ops\.methods\.bake"
        with pytest.raises(ValueError, match="^save: " + told):
            sparse_ops.save(model, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match="^sparsify: " + told):
            sparse_ops.sparsify(model)
        with pytest.raises(RuntimeError, match="parametrized modules"):  # as the page says
            torch.save(model, tmp_path / "whole.pt")
        (tmp_path / "whole.pt").unlink()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"^bake: the weight of 0 is in training: .* finalize\(\)"):
        methods.bake(run.net)
    run.finish().method.finalize()
    sparse_ops.save(run.net, tmp_path / "model.safetensors")
