"""Layers whose weight a method computes from trained parameters: put on, taken off, baked into plain ones."""

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparse_ops import checks


class Form(nn.Module):
    """A method's parametrization of a weight, in the sense of torch.nn.utils.parametrize, without an inverse."""


_in_training: "weakref.WeakSet[Form]" = weakref.WeakSet()  # a sparsifier steps these; deep copies of them are not here


def put_on(module: nn.Module, leaf: str, form: Form, order: list[str]) -> None:
    """Let `form` compute module.<leaf>; order: the names of the module's parameters, as they shall come afterwards."""
    if parametrize.is_parametrized(module):
        _own_class(module)
    parametrize.register_parametrization(module, leaf, form, unsafe=True)
    _forms(module, leaf).__dict__["order"] = tuple(order)  # deep copies have it too
    _in_training.add(form)


def take_off(module: nn.Module, leaf: str) -> nn.Parameter:
    """Give the module its plain Parameter back, with the trained values, in its old place; returns it."""
    forms = _forms(module, leaf)
    _in_training.discard(forms[0])
    _own_class(module)
    parametrize.remove_parametrizations(module, leaf, leave_parametrized=False)
    for key in forms.order:  # optimisers number parameters: they shall come in the old order
        if key in module._parameters:
            module._parameters[key] = module._parameters.pop(key)
    parameter = module._parameters[leaf]
    assert parameter is not None
    return parameter


def _forms(module: nn.Module, leaf: str) -> Any:
    """The ParametrizationList of a weight."""
    return module.parametrizations[leaf]  # type: ignore[index]


def _own_class(module: nn.Module) -> None:
    """A class of its own for a parametrized module, whose deep copies share the one that torch made for it.

    torch adds and removes the property of a parametrization there: without this, what is done to one is done to all.
    """
    shared = type(module)
    members = {key: value for key, value in vars(shared).items() if key not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, members)


def places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(module's name, module, name of the weight) of every weight with a Form."""
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            parametrized: Any = module.parametrizations
            for leaf in parametrized:
                if isinstance(_forms(module, leaf)[0], Form):
                    yield name, module, leaf


def refuse(what: str, model: nn.Module) -> None:
    """ValueError for a model with such weights, which has to become a plain one before `what`."""
    for name, module, leaf in places(model):
        kind = type(module).__bases__[0].__name__
        raise ValueError(
            f"{what}: the {leaf} of {name or 'the model'} ({kind}) is still parametrized by a method that trains "
            "thresholds: call its sparsifier's finalize() before, or sparse_ops.methods.bake(model) on a copy or an "
            "average of it"
        )


@torch.no_grad()
def bake(model: nn.Module) -> nn.Module:
    """Make a copy or an average of a model that STR or DifferentiableSparsification trains a plain network, in place.

    Its Parameters become the weights in use, with their exact zeros, by its own weights and thresholds; layers are
    plain again, and state_dict has the keys that the network began with. Nothing happens to a model without such
    weights. Raises ValueError for the model that a sparsifier trains: that is what its `finalize` is for.
    """
    checks.module("bake", model)
    found = list(places(model))
    for name, module, leaf in found:
        if _forms(module, leaf)[0] in _in_training:
            raise ValueError(
                f"bake: the {leaf} of {name or 'the model'} is in training: call its sparsifier's finalize(), or bake "
                "a copy.deepcopy of the model"
            )
    baked: dict[int, Tensor] = {}
    for _, module, leaf in found:
        used = getattr(module, leaf)
        parameter = take_off(module, leaf)
        if id(parameter) not in baked:  # a tied one comes several times
            baked[id(parameter)] = parameter.copy_(used)
    return model
