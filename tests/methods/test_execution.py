"""execution="sparse": the same training as dense execution, with layers, parameters and optimiser state sparse."""

import copy

import pytest
import torch
from method_runs import OPTIMIZERS, Run
from small_networks import NETWORKS, batches
from torch import nn

from sparse_ops import methods
from sparse_ops.nn import SparseConv2d, SparseLinear
from sparse_ops.nn.base import SparseModule

pytestmark = pytest.mark.filterwarnings("ignore::sparse_ops.methods.CollapseWarning")
METHODS = ["acdc", "rigl", "set"]


def sparse_layers(net):
    return {name: module for name, module in net.named_modules() if isinstance(module, SparseModule)}


def dense_form(run):
    """Name -> (weight, same-shaped state) as dense tensors, whatever form the layers have."""
    found = {}
    for name, module in run.net.named_modules():
        parameter = getattr(module, "values", getattr(module, "weight", None))
        if parameter is None:
            continue
        scatter = module.scatter if isinstance(module, SparseModule) else lambda t: t
        state = run.optimizer.state.get(parameter, {})
        tensors = {k: scatter(t) for k, t in state.items() if torch.is_tensor(t) and t.shape == parameter.shape}
        found[name] = scatter(parameter.detach()), tensors
    return found


def assert_close(a, b):
    for (name, (weight, state)), (other, other_state) in zip(
        dense_form(a).items(), dense_form(b).values(), strict=True
    ):
        assert (weight - other).norm() <= 1e-9 * other.norm(), name
        assert state.keys() == other_state.keys()
        for key, t in state.items():
            assert (t - other_state[key]).norm() <= 1e-8 * other_state[key].norm(), (name, key)


def double(net):
    return net.double()


def pair(name, optimizer, kind):
    options = {"prepare": double, "check": True} | ({"alpha": 0.9, "scope": "uniform"} if name != "acdc" else {})
    info = methods.get(name)
    return (Run(info, OPTIMIZERS[optimizer], kind, execution=execution, **options) for execution in ("dense", "sparse"))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_whole_run_equals_that_of_dense_execution(name, optimizer, kind):
    dense, sparse = pair(name, optimizer, kind)
    forms = set()
    while not dense.method.finished:
        for x, y in batches(kind, 4, dense.number):
            x = x.double() if kind == "cnn" else x
            forms.add(len(sparse_layers(sparse.net)))
            dense.step(x, y), sparse.step(x, y)
            assert_close(dense, sparse)
            assert dense.method.masks.keys() == sparse.method.masks.keys()
            for mask, other in zip(dense.method.masks.values(), sparse.method.masks.values(), strict=True):
                assert torch.equal(mask.to_dense(), other.to_dense())
        for run in (dense, sparse):
            run.number += 1
            run.method.end_epoch()
    assert forms == {0, 3 if kind == "cnn" else 2}
    assert sparse_layers(sparse.net) and not sparse_layers(dense.net)
    assert str(dense.method.report().sparsity) == str(sparse.method.report().sparsity)
    assert sparse.method.finalize() is sparse.net and not sparse_layers(sparse.net)
    dense.method.finalize()
    for p, q in zip(dense.net.parameters(), sparse.net.parameters(), strict=True):
        assert (p - q).norm() <= 1e-7 * q.norm()  # a bias before a norm has no gradient but rounding: AdamW blows it up
    for weight, mask in zip(sparse.method.weights.values(), sparse.method.masks.values(), strict=True):
        assert weight.detach()[~mask.to_dense()].count_nonzero() == 0
    held = [p for group in sparse.optimizer.param_groups for p in group["params"]]
    assert all(p is q for p, q in zip(held, sparse.net.parameters(), strict=True))
    assert [p.shape for p in held] == [p.shape for p in dense.net.parameters()]
    x, y = next(batches(kind, 1, 99))
    dense.step(x.double() if kind == "cnn" else x, y), sparse.step(x.double() if kind == "cnn" else x, y)
    assert_close(dense, sparse)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resuming_at_any_step_is_bit_for_bit(name, optimizer, tmp_path):
    """The sparsifier's state first; also in the middle of a phase, and before a step that changes the mask."""
    info = methods.get(name)
    forms = set()
    for stop in (1, 2, 3, 6, 9, 11):
        whole = Run(info, OPTIMIZERS[optimizer], execution="sparse")
        seen = [(x, y) for number in range(5) for x, y in batches("cnn", 4, number)]
        for i, (x, y) in enumerate(seen[:stop]):
            whole.step(x, y)
            if i % 2 == 1:
                whole.method.end_epoch()
        forms.add(bool(sparse_layers(whole.net)))
        state = {"net": whole.net.state_dict(), "optimizer": whole.optimizer.state_dict()}
        torch.save(state | {"method": whole.method.state_dict()}, tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        resumed = Run(info, OPTIMIZERS[optimizer], execution="sparse")
        resumed.step(*seen[7])
        resumed.method.load_state_dict(state["method"])
        resumed.net.load_state_dict(state["net"])
        resumed.optimizer.load_state_dict(state["optimizer"])
        for run in (whole, resumed):
            run.number = 3
            run.step(*seen[stop])
            run.finish()
            run.method.finalize()
        for p, q in zip(whole.net.parameters(), resumed.net.parameters(), strict=True):
            assert torch.equal(p, q)
        assert str(whole.method.report()) == str(resumed.method.report())
    assert forms == {True, False}


def test_modules_and_parameters_are_the_same_objects_turn_by_turn():
    run = Run(methods.get("acdc"), OPTIMIZERS["ours sgd"], execution="sparse")
    dense, biases = dict(run.net.named_modules()), [run.net[5].bias, run.net[7].bias]
    run.epoch()
    first = sparse_layers(run.net)
    values = [layer.values for layer in first.values()]
    assert [type(layer) for layer in first.values()] == [SparseConv2d, SparseLinear, SparseLinear]
    assert sum(v.numel() for v in values) == 510
    held = [p for group in run.optimizer.param_groups for p in group["params"]]
    assert all(p is q for p, q in zip(held, run.net.parameters(), strict=True))
    run.epoch()
    assert run.method.masks == {} and dict(run.net.named_modules()) == dense
    assert all(w.grad is None for w in run.method.weights.values())
    run.epoch()
    assert sparse_layers(run.net) == first
    assert all(v is layer.values for v, layer in zip(values, first.values(), strict=True))
    assert [run.net[5].bias, run.net[7].bias] == biases
    run.net.eval()
    run.method.detach()
    assert not sparse_layers(run.net) and not run.net[5].training and not run.net[0].training


def test_momentum_is_carried_over_exactly():
    run = Run(methods.get("acdc"), OPTIMIZERS["torch adamw"], execution="sparse")
    for x, y in batches("cnn", 4):
        run.step(x, y)
    weights = run.method.weights
    before = {name: {k: t.clone() for k, t in run.optimizer.state[w].items()} for name, w in weights.items()}
    run.method.end_epoch()
    for name, mask in run.method.masks.items():
        values = run.net.get_submodule(name.removesuffix(".weight")).values
        assert weights[name] not in run.optimizer.state
        for key, t in run.optimizer.state[values].items():
            expected = before[name][key]
            assert torch.equal(t, expected[mask.to_dense()] if expected.dim() else expected)
    carried = {name: dict(run.optimizer.state[p]) for name, p in run.net.named_parameters() if "values" in name}
    run.method._run_dense()
    for name, mask in run.method.masks.items():
        own = carried[name.replace("weight", "values")]
        for key, t in run.optimizer.state[weights[name]].items():
            back = t[mask.to_dense()] if t.dim() else t
            assert torch.equal(back, own[key]) and (not t.dim() or t.shape == weights[name].shape)


def test_layers_that_cannot_be_sparse_stay_dense_and_masked():
    class Own(nn.Linear):
        pass

    def prepare(net):
        net[5] = Own(72, 24)
        net[7].register_forward_hook(lambda module, inputs, output: None)

    for name in METHODS:
        run = Run(methods.get(name), OPTIMIZERS["ours adamw"], prepare=prepare, execution="sparse", check=True)
        plain = Run(methods.get(name), OPTIMIZERS["ours adamw"], prepare=prepare)
        while not run.method.finished:
            for x, y in batches("cnn", 4, run.number):
                for one in (run, plain):
                    one.step(x, y)
                layers = sparse_layers(run.net)
                assert list(layers) in ([], ["0"])
                for key, mask in run.method.masks.items():
                    assert ("0" in layers and key == "0.weight") or not run.method.weights[key][~mask.to_dense()].any()
            run.number += 1
            run.method.end_epoch(), plain.method.end_epoch()
        run.method.finalize()
        assert sum(mask.zeros for mask in run.method.masks.values()) == 1530
        assert sum((w == 0).sum().item() for w in run.method.weights.values()) >= 1530


@pytest.mark.parametrize("name", METHODS)
def test_grad_scaler_clipping_accumulation_and_closures(name):
    info = methods.get(name)
    run = Run(info, OPTIMIZERS["torch sgd"], prepare=double, execution="sparse")
    plain = Run(info, OPTIMIZERS["torch sgd"], prepare=double)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=10**6)
    for x, y in (batch for number in range(3) for batch in batches("cnn", 4, number)):
        x = x.double()
        for half in (slice(0, 8), slice(8, 16)):
            run.backward(x[half], y[half], 0.5 * 64.0)
        scaler.scale(torch.zeros(()))
        scaler.unscale_(run.optimizer)
        run.method.add_penalty_grad_()
        nn.utils.clip_grad_norm_(run.net.parameters(), 1e9)
        scaler.step(run.optimizer)
        scaler.update()
        run.optimizer.zero_grad()

        def closure(x=x, y=y):
            plain.optimizer.zero_grad()
            plain.backward(x[:8], y[:8], 0.5)
            plain.backward(x[8:], y[8:], 0.5)

        plain.optimizer.step(closure)
    for form, other in zip(dense_form(run).values(), dense_form(plain).values(), strict=True):
        assert (form[0] - other[0]).norm() <= 1e-6 * other[0].norm()  # batch norms see halves in both


def test_one_layer_alone_and_layers_without_a_weight():
    for sparsity in (0.5, 0.96):
        net = nn.Linear(5, 5)
        method = methods.RigL(
            net, torch.optim.SGD(net.parameters(), 0.1), sparsity, 2, total_steps=8, delta_t=2, execution="sparse"
        )
        for _ in range(8):
            net(torch.randn(4, 5)).square().sum().backward()
            method.optimizer.step()
            method.optimizer.zero_grad()
        assert isinstance(method.finalize(), nn.Linear)
    net = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 2))
    with torch.no_grad():
        net[1].weight.mul_(1e-9)
    for make in (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), OPTIMIZERS["ours sgd"], OPTIMIZERS["ours adamw"]):
        twin = copy.deepcopy(net)
        optimizer = make(twin.parameters())
        method = methods.ACDC(
            twin, optimizer, 0.9, 2, warmup_epochs=0, last_dense_epochs=0, last_sparse_epochs=2, execution="sparse"
        )
        assert twin[1].nnz == 0
        for _ in range(2):
            twin(torch.randn(4, 40)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            method.end_epoch()
        assert method.finalize()[1].weight.count_nonzero() == 0


def test_non_finite_values_are_named():
    run = Run(methods.get("rigl"), OPTIMIZERS["ours sgd"], execution="sparse")
    data = list(batches("cnn", 3))
    run.step(*data[0])
    run.backward(*data[1])
    run.net[5].values.grad[0] = float("nan")
    with pytest.raises(ValueError, match=r"5.weight holds 1 non-finite values \(nan\) after step 2"):
        run.optimizer.step()


def test_errors():
    with pytest.raises(ValueError, match="ACDC: execution is 'fast'; it may be one of dense, sparse"):
        Run(methods.get("acdc"), OPTIMIZERS["ours sgd"], execution="fast")
    run = Run(methods.get("acdc"), OPTIMIZERS["ours sgd"], execution="sparse").until("sparse")
    state = run.method.state_dict()
    with pytest.raises(ValueError, match="ACDC: the checkpoint's layers run sparse, but execution is 'dense'"):
        Run(methods.get("acdc"), OPTIMIZERS["ours sgd"]).method.load_state_dict(state)
    with pytest.raises(ValueError, match=r"has sparsity 0\.5, here"):
        run.method.load_state_dict(state | {"budget": state["budget"] | {"sparsity": 0.5}})
    assert len(sparse_layers(run.net)) == 3
