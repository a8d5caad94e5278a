"""What does not fit raises ValueError or TypeError with the argument and its value, as docs/api.md says."""

import math

import pytest
import torch
from torch import nn

import sparse_ops
from sparse_ops import optim


def model():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.1)


# every public function that takes a model, called with `m` in its place
TAKES_MODEL = {
    "plan": lambda m: sparse_ops.plan(m, 0.9),
    "sparsity_report": sparse_ops.sparsity_report,
    "sparsify": sparse_ops.sparsify,
    "densify": sparse_ops.densify,
    "param_groups": lambda m: sparse_ops.param_groups(m, 1e-4),
    "save": lambda m: sparse_ops.save(m, "model"),
    "load": lambda m: sparse_ops.load("model", m),
    "optimize_for_inference": lambda m: sparse_ops.optimize_for_inference(m, torch.zeros(1, 4)),
    "bake": sparse_ops.methods.bake,
    "ART": lambda m: sparse_ops.methods.ART(m, sgd(model()), 0.9),
    "apply_masks_": lambda m: (lambda n: sparse_ops.methods.ART(n, sgd(n), 0.9).apply_masks_(m))(model()),
}


@pytest.mark.parametrize("name", TAKES_MODEL)
@pytest.mark.parametrize("given, said", [("m", "str"), ([1], "list"), (None, "NoneType")])
def test_what_is_no_model(name, given, said):
    with pytest.raises(TypeError, match=rf"^{name}.*model is (of type )?{said}, expected a torch.nn.Module"):
        TAKES_MODEL[name](given)


def test_a_class_for_a_model():
    with pytest.raises(TypeError, match=r"plan: model is the class Linear, expected a torch.nn.Module"):
        sparse_ops.plan(nn.Linear, 0.9)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda m: sparse_ops.plan(m, 0.9, prunable=3), TypeError, r"prunable= is 3; expected a predicate"),
        (lambda m: sparse_ops.plan(m, 0.9, prunable=[]), ValueError, r"prunable= is an empty list"),
        (lambda m: sparse_ops.sparsity_report(m, 3), TypeError, r"selection is 3, expected a Selection"),
        (lambda m: sparse_ops.sparsify(m, policy=3), ValueError, r"policy is 3, expected 'measured'"),
        (lambda m: sparse_ops.sparsify(m, policy=None), ValueError, r"policy is None, expected 'measured'"),
        (lambda m: sparse_ops.sparsify(m, example=[]), ValueError, r"sparsify: example is an empty list"),
        (lambda m: sparse_ops.sparsify(m, optimizer=3), TypeError, r"sparsify: optimizer is of type int"),
        (lambda m: sparse_ops.densify(m, optimizer=3), TypeError, r"densify: optimizer is of type int"),
        (lambda m: sparse_ops.param_groups(m, "x"), TypeError, r"weight_decay is 'x', expected a number >= 0"),
        (lambda m: sparse_ops.param_groups(m, math.inf), ValueError, r"weight_decay is inf, expected a finite"),
        (lambda m: sparse_ops.save(m, 3), TypeError, r"path is of type int, expected a path"),
        (lambda m: sparse_ops.verify(3), TypeError, r"path is of type int, expected a path"),
        (lambda m: sparse_ops.kth_magnitude(3, 1), TypeError, r"tensors is 3, expected a list of tensors"),
        (lambda m: sparse_ops.magnitude_mask(3, 0.5), TypeError, r"tensors is 3, expected a list of tensors"),
        (lambda m: sparse_ops.hypersparse_loss([m[0].weight], "x"), TypeError, r"sparsity is 'x', expected a number"),
        (lambda m: sparse_ops.methods.get(3), TypeError, r"name is 3, expected one of art"),
        (lambda m: optim.SGD(m.parameters(), state_dtype="float32"), TypeError, r"SGD: state_dtype is 'float32'"),
        (lambda m: optim.AdamW(m.parameters(), state_dtype="float32"), TypeError, r"AdamW: state_dtype is 'float32'"),
        (lambda m: optim.Sweep(3), TypeError, r"Sweep: weights is of type int, expected a dict"),
        (lambda m: optim.Sweep({"a": 3}), TypeError, r"Sweep: weights\['a'\] is of type int, expected a Parameter"),
        (lambda m: optim.Sweep({"a": m[0].weight}, tolerance="x"), TypeError, r"Sweep: tolerance is 'x'"),
        (lambda m: sparse_ops.nn.SparseGates(3, initial_share="x"), ValueError, r"initial_share is 'x', expected 0 <"),
        (lambda m: sparse_ops.nn.SparseGates(3).penalty("x"), ValueError, r"p is 'x', expected 0 < p < 1"),
        (lambda m: sparse_ops.methods.ART(m, sgd(m), 0.9).load_state_dict(3), TypeError, r"checkpoint is of type int"),
        (lambda m: optim.attach(sgd(m), 4), TypeError, r"attach: sweep is of type int, expected a Sweep"),
    ],
)
def test_the_argument_and_its_value_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(model())


def test_a_file_that_cannot_be_is_named_with_its_folder(tmp_path):
    path = tmp_path / "nowhere" / "model.safetensors"
    with pytest.raises(FileNotFoundError) as error:
        sparse_ops.save(model(), path)
    assert error.value.filename == str(path) and f"there is no folder {path.parent}" in str(error.value)
