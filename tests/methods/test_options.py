"""What methods take beside their own arguments: shown, checked and handed on by one mechanism."""

import inspect
from typing import ClassVar, Unpack

import pytest
import torch
from small_networks import NETWORKS

from sparse_ops import methods
from sparse_ops.methods import Options
from sparse_ops.methods.options import SharedOptions


class Own(methods.Sparsifier):
    """A method of a user's, with a default of its own."""

    name = "own"
    defaults: ClassVar[Options] = {**methods.Sparsifier.defaults, "scope": "uniform"}

    def __init__(self, model, optimizer, sparsity, epochs=1, *, speed=2, **options: Unpack[Options]):
        super().__init__(model, optimizer, sparsity, [("train", epochs)], **options)
        self._start()

    @classmethod
    def for_epochs(cls, epochs):
        return {"epochs": epochs}

    def _enter(self, phase):
        self._prune(self.budget.masks(self.weights))


class Handing(methods.OneShot):
    """A subclass that does not say what it hands on."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


def net_and_sgd():
    net = NETWORKS["cnn"]()
    return net, torch.optim.SGD(net.parameters(), lr=0.1)


@pytest.mark.parametrize("name", methods.names())
def test_a_signature_shows_every_option_with_the_default_of_its_class(name):
    cls = methods.get(name).cls
    parameters = inspect.signature(cls).parameters
    kinds = SharedOptions if "scope" not in parameters else Options
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for option, kind in kinds.__annotations__.items():
        shown = parameters[option]
        assert (shown.kind, shown.default) == (shown.KEYWORD_ONLY, cls.defaults[option]), option
        assert shown.annotation == kind
    scopes = {"rigl": "erk", "set": "erk", "greg1": "uniform", "greg2": "uniform", "str": None, "differentiable": None}
    assert getattr(parameters.get("scope"), "default", None) == scopes.get(name, "global")
    assert ("execution" in parameters) == (name in ("acdc", "rigl", "set"))


@pytest.mark.parametrize("name", methods.names())
def test_an_unknown_argument_is_the_first_thing_to_be_said(name):
    net, optimizer = net_and_sgd()
    cls = methods.get(name).cls
    for wrong, near in (("exclud", "exclude"), ("modle", "model"), ("stricd", "strict")):
        with pytest.raises(TypeError, match=f"{cls.__name__}: unexpected keyword argument '{wrong}'.*'{near}'"):
            cls(net, optimizer, sparsity=7, **{wrong: 1})  # the sparsity is wrong too, and arguments are missing
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'qqqq'; known: model, .*lr, strict, check"):
        cls(net, optimizer, 0.5, qqqq=1)


def test_options_reach_their_place():
    net, optimizer = net_and_sgd()
    given = {"exclude": "0", "scope": "erk", "count": "floor", "min_nonzeros": 2, "lr": "user", "strict": True}
    method = methods.OneShot(net, optimizer, 0.5, check=True, prunable=["0", "5"], **given)
    budget = method.budget
    assert list(method.weights) == ["5.weight"] and method.sweep.check and method.strict and method.lr == "user"
    assert (budget.sparsity, budget.scope, budget.count, budget.min_nonzeros) == (0.5, "erk", "floor", 2)


@pytest.mark.parametrize("cls", [Own, methods.RigL, methods.GReg])
def test_a_sparsity_for_each_layer_takes_the_place_of_a_scope_that_is_only_the_default(cls):
    options = {methods.RigL: {"total_steps": 1000}, methods.GReg: {"pretrained": True}}.get(cls, {})
    net, optimizer = net_and_sgd()
    method = cls(net, optimizer, 0.5, **options)
    assert method.budget.scope == cls.defaults["scope"] != "global"
    method.detach()
    assert cls(net, optimizer, {"*": 0.5}, **options).budget.scope == "global"
    other = "erk" if cls.defaults["scope"] == "uniform" else "uniform"
    with pytest.raises(ValueError, match=f"scope is '{other}', but sparsity gives one number per layer"):
        cls(*net_and_sgd(), {"*": 0.5}, scope=other, **options)


def test_methods_of_a_user():
    assert list(inspect.signature(Own).parameters)[:6] == [
        "model",
        "optimizer",
        "sparsity",
        "epochs",
        "speed",
        "prunable",
    ]
    with pytest.raises(TypeError, match="Own: unexpected keyword argument 'sped'; did you mean 'speed'"):
        Own(*net_and_sgd(), 0.5, sped=3)
    assert list(inspect.signature(Handing).parameters) == ["args", "kwargs"]
    assert Handing(*net_and_sgd(), 0.5, finetune_epochs=3, scope="erk").budget.scope == "erk"
    with pytest.raises(TypeError, match="Handing: unexpected keyword argument 'scop'; did you mean 'scope'"):
        Handing(*net_and_sgd(), 0.5, scop="erk")
