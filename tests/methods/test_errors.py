"""What every method refuses: arguments, models, optimisers, checkpoints."""

import inspect

import pytest
import torch
from method_runs import OPTIMIZERS, SHORT, Run, make
from small_networks import NETWORKS
from torch import nn

from sparse_ops import methods

pytestmark = pytest.mark.filterwarnings("ignore::sparse_ops.methods.CollapseWarning")


@pytest.fixture(params=methods.names())
def info(request):
    return methods.get(request.param)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"sparsity": 1.0}, ValueError, r"sparsity is 1.0, expected 0 <= sparsity < 1"),
        ({"sparsity": -0.5}, ValueError, r"sparsity is -0.5"),
        ({"sparsity": float("nan")}, ValueError, r"sparsity is nan"),
        ({"sparsity": "0.9"}, TypeError, r"sparsity is '0.9'"),
        ({"sparsity": {"0": 0.5}}, ValueError, r"sparsity gives no number for 5.weight"),
        ({"sparsity": {"9": 0.5, "*": 0.5}}, ValueError, r"sparsity\['9'\] matches none"),
        ({"sparsity": 98}, ValueError, r"sparsity is 98, .* \(a percentage\? divide by 100\)"),
        ({"scope": "layer"}, ValueError, r"scope is 'layer'"),
        ({"count": "round"}, ValueError, r"count is 'round'"),
        ({"min_nonzeros": -1}, ValueError, r"min_nonzeros is -1"),
        ({"sparsity": 0.9, "min_nonzeros": 100}, ValueError, r"min_nonzeros is 100, but the budget leaves 204 of 2040"),
        ({"sparsity": 0.9, "min_nonzeros": 100, "count": "art"}, ValueError, r"the budget leaves 203 of 2040"),
        ({"sparsity": 0.9, "min_nonzeros": 100, "scope": "erk"}, ValueError, r"the budget leaves 204 of 2040"),
        ({"sparsity": {"7": 0.0, "*": 0.95}, "min_nonzeros": 100}, ValueError, r"the budget leaves 193 of 2040"),
        ({"lr": "auto"}, ValueError, r"lr is 'auto'"),
        ({"prunable": "head"}, ValueError, r"prunable='head' matches nothing"),
        ({"strict": "yes"}, TypeError, r"strict is 'yes', expected True or False"),
        ({"check": 1}, TypeError, r"check is 1, expected True or False"),
        ({"prunable": []}, ValueError, r"prunable= is an empty list"),
        ({"momentum": 0.5}, TypeError, r"momentum"),
    ],
)
def test_bad_arguments_are_named_and_leave_the_optimiser_free(info, options, error, message):
    taken = inspect.signature(info.cls).parameters
    if error is not TypeError and not set(options) <= set(taken):
        pytest.skip(f"{info.name} has no {', '.join(set(options) - set(taken))}")
    net = NETWORKS["cnn"]()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(error, match=message):
        make(info, net, optimizer, **({"sparsity": 0.5} | options))
    make(info, net, optimizer, sparsity=0.5)


def test_bad_numbers_of_epochs_are_named(info):
    net = NETWORKS["cnn"]()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    lengths = [name for name in inspect.signature(info.cls).parameters if name.endswith("epochs")]
    assert lengths and set(info.cls.for_epochs(20)) <= set(inspect.signature(info.cls).parameters)
    for name in lengths:
        with pytest.raises(ValueError, match=f"{name} is -1"):
            make(info, net, optimizer, **({"sparsity": 0.5} | SHORT[info.name] | {name: -1}))
        with pytest.raises(TypeError, match=f"{name} is 1.0"):
            make(info, net, optimizer, **({"sparsity": 0.5} | SHORT[info.name] | {name: 1.0}))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_models(info, bad):
    run = Run(info, OPTIMIZERS["ours sgd"])
    with pytest.raises(ValueError, match="has a sparsifier already"):
        make(info, run.net, run.optimizer, sparsity=0.5)
    with pytest.raises(ValueError, match="optimizer and model do not match"):
        make(info, NETWORKS["cnn"](), OPTIMIZERS["ours sgd"](run.net.parameters()), sparsity=0.5)
    other = NETWORKS["cnn"]()
    other[5].weight.data[1, 1] = bad
    with pytest.raises(ValueError, match=r"5.weight holds 1 non-finite values \((nan|inf)\)"):
        make(info, other, OPTIMIZERS["ours sgd"](other.parameters()), sparsity=0.5)
    with pytest.raises(ValueError, match="BatchNorm1d has no prunable weights"):
        norm = nn.BatchNorm1d(3)
        make(info, norm, OPTIMIZERS["ours sgd"](norm.parameters()), sparsity=0.5)


@pytest.mark.parametrize("weight", [torch.randn(4, 24).t()[::2, :].t(), torch.randn(4, 1).expand(4, 24)])
def test_weights_with_gaps_or_overlaps(info, weight):
    net = NETWORKS["cnn"]()
    net[7].weight = nn.Parameter(weight)
    optimizer = OPTIMIZERS["ours sgd"](net.parameters())
    with pytest.raises(ValueError, match=r"7\.weight has gaps or overlaps in memory, strides"):
        make(info, net, optimizer, sparsity=0.5)
    assert "7.weight" not in make(info, net, optimizer, sparsity=0.5, exclude="7").weights


def bits(method):
    return {name: mask.bits.tolist() for name, mask in method.masks.items()}


def test_foreign_checkpoints_are_refused(info):
    run = Run(info, OPTIMIZERS["ours sgd"]).until_masked()
    state = run.method.state_dict()
    fresh = Run(info, OPTIMIZERS["ours sgd"]).method
    before = bits(fresh)
    cases = [
        ({key: value for key, value in state.items() if key != "masks"}, "has no masks; resuming without them"),
        (state | {"method": "other"}, "the checkpoint is of the method 'other'"),
        (state | {"budget": state["budget"] | {"sparsity": 0.5}}, "has sparsity 0.5, here it is 0.75"),
        (state | {"phase_index": 99}, f"the checkpoint is in phase 100, '{state['phase']}', of another course than"),
        ({"model": 1}, "not a sparsifier's checkpoint, it lacks method"),
        (run.optimizer.state_dict(), "not a sparsifier's checkpoint"),
    ]
    for bad, message in cases:
        with pytest.raises(ValueError, match=message):
            fresh.load_state_dict(bad)
    assert fresh.phase == fresh.phases[0] and bits(fresh) == before
    narrow = NETWORKS["cnn"]()
    del narrow[7]
    other = Run(info, OPTIMIZERS["ours sgd"], net=narrow).method
    with pytest.raises(ValueError, match=r"prunable weights differ from the model's: 7.weight"):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    "name, key, other, at, shown",
    [
        ("art", "lambda_init", 2e-3, "lambda_init", "0.001, here it is 0.002"),
        ("art", "eta", 3.0, "eta", "2.0, here it is 3.0"),
        ("art", "half_window", 2, "half_window", "1, here it is 2"),
        ("art", "total_epochs", 9, "total_epochs", "None, here it is 9"),
        ("gmp", "initial_sparsity", 0.5, "initial_sparsity", "0.0, here it is 0.5"),
        ("oneshot", "finetune_epochs", 4, "finetune", "3, here it is 4"),
        ("acdc", "last_sparse_epochs", 3, "course", "dense 1, .* sparse 2, here it is dense 1, .* sparse 3"),
        ("acdc", "reset_momentum", False, "reset_momentum", "True, here it is False"),
        ("greg1", "regularize_lr", 0.03, "regularize_lr", "0.02, here it is 0.03"),
        ("greg2", "kept", "paper", "kept", "code, here it is paper"),
        ("rigl", "total_epochs", 6, "end_step", "15, here it is 18"),
        ("set", "total_steps", 21, "end_step", "15, here it is 16"),
        ("str", "total_steps", 20, "total_steps", "16, here it is 20"),
        ("str", "threshold_decay", 0.06, "threshold_decay", "0.05, here it is 0.06"),
        ("differentiable", "p", 0.7, "p", "0.5, here it is 0.7"),
        ("differentiable", "threshold_lr", 2.0, "threshold_lr", "1.0, here it is 2.0"),
    ],
)
@pytest.mark.filterwarnings("ignore:GReg. lambda exceeds:UserWarning")
def test_checkpoints_of_other_settings_are_refused(name, key, other, at, shown):
    run = Run(methods.get(name), OPTIMIZERS["ours sgd"])
    run.epoch()
    state = run.method.state_dict()
    options = {key: other} | ({"total_epochs": 8} if key == "last_sparse_epochs" else {})
    fresh = Run(methods.get(name), OPTIMIZERS["ours sgd"], **options).method
    with pytest.raises(ValueError, match=f"the checkpoint has {at} {shown}"):
        fresh.load_state_dict(state)
    assert fresh.epoch == 0
    Run(methods.get(name), OPTIMIZERS["ours sgd"]).method.load_state_dict(state)


@pytest.mark.parametrize(
    "evaluate, message",
    [
        (lambda model: None, "the accuracy that evaluate returned is None, expected a number"),
        (lambda model: "0.9", "the accuracy that evaluate returned is '0.9', expected a number"),
        (0.9, r"ART: evaluate is 0.9, expected a function"),
    ],
)
def test_what_evaluate_may_be(evaluate, message):
    run = Run(methods.get("art"), OPTIMIZERS["ours sgd"]).until("regularize")
    before = {name: w.detach().clone() for name, w in run.method.weights.items()}
    with pytest.raises(TypeError, match=message):
        run.method.end_epoch(evaluate, train_accuracy=0.9)
    assert all(torch.equal(before[name], w) for name, w in run.method.weights.items())  # the copy's zeros are undone
    with pytest.raises(TypeError, match="train_accuracy is 'x', expected a number"):
        run.method.end_epoch(lambda model: 0.5, train_accuracy="x")


def test_registry():
    assert methods.get("art").cls is methods.ART
    with pytest.raises(ValueError, match="there is no method 'artt'; did you mean 'art'"):
        methods.get("artt")
    with pytest.raises(ValueError, match=r"there is no method 'foo' \(known: art, .*oneshot.*\)"):
        methods.get("foo")
    for name in methods.names():
        described = methods.get(name)
        assert described.cls.name == name and described.paper and described.summary
        with pytest.raises(AttributeError):
            described.name = "x"
