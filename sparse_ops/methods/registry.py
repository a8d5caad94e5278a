"""The methods by name, with what each of them promises."""

import difflib
from dataclasses import dataclass

from sparse_ops.methods.acdc import ACDC
from sparse_ops.methods.art import ART
from sparse_ops.methods.diffsparse import DifferentiableSparsification
from sparse_ops.methods.evolutionary_set import SET
from sparse_ops.methods.gmp import GMP
from sparse_ops.methods.greg import GReg, GReg2
from sparse_ops.methods.magnitude import OneShot
from sparse_ops.methods.rigl import RigL
from sparse_ops.methods.soft_threshold_str import STR
from sparse_ops.methods.updater import Sparsifier


@dataclass(frozen=True)
class MethodInfo:
    """What a method is, and what the tests hold it to.

    exact_budget: `finalize` leaves exactly the budget's zeros. masked_state_zero: where a mask is 0, the optimiser's
    state is 0 too. needs_evaluate: `end_epoch` needs `evaluate`. fixed_length: the number of epochs is known before.
    total_steps: the constructor takes total_steps=, the number of optimiser steps in the whole run. starts_dense:
    nothing is masked yet when the constructor returns, unless its first phases are empty. live_zeros: weights that no
    mask prunes may be zero too, having grown and not moved since. needs_trained: it refuses a
    network that it shall not train first, unless told pretrained=True. reparametrized: until `finalize` the weights in
    use are functions of the model's Parameters and of trained thresholds; training decides where and, unless a
    controller steers it, how many zeros there are.
    """

    name: str
    cls: type[Sparsifier]
    paper: str
    summary: str
    exact_budget: bool = True
    masked_state_zero: bool = True
    needs_evaluate: bool = False
    fixed_length: bool = True
    total_steps: bool = False
    starts_dense: bool = True
    live_zeros: bool = False
    needs_trained: bool = False
    reparametrized: bool = False


_GREG = "Wang, Qin, Zhang, Fu: Neural Pruning via Growing Regularization, ICLR 2021, arXiv 2012.09243"
_METHODS = (
    MethodInfo(
        "art",
        ART,
        "Glandorf, Kaiser, Rosenhahn: HyperSparse Neural Networks: Shifting Exploration to Exploitation through "
        "Adaptive Regularization, ICCVW 2023, arXiv 2308.07163",
        "dense training, a penalty that grows until the pruned network is as good as the dense one, fine-tuning",
        needs_evaluate=True,
        fixed_length=False,
    ),
    MethodInfo(
        "gmp",
        GMP,
        "Zhu, Gupta: To prune, or not to prune: exploring the efficacy of pruning for model compression, ICLR 2018 "
        "workshop, arXiv 1710.01878",
        "pruning by magnitude step by step while the network trains, along a cubic",
        total_steps=True,
    ),
    MethodInfo(
        "greg1",
        GReg,
        _GREG,
        "an L2 penalty that grows on the smallest weights of a trained network until they are gone",
        total_steps=True,
        needs_trained=True,
    ),
    MethodInfo(
        "greg2",
        GReg2,
        _GREG,
        "the same on weights that are chosen by how they answer to a growing penalty on all",
        total_steps=True,
        needs_trained=True,
    ),
    MethodInfo(
        "oneshot",
        OneShot,
        "Han, Pool, Tran, Dally: Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015, "
        "arXiv 1506.02626, with one pruning step",
        "dense training, one pruning by magnitude, fine-tuning",
    ),
    MethodInfo(
        "acdc",
        ACDC,
        "Peste, Iofinova, Vladu, Alistarh: AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural "
        "Networks, NeurIPS 2021, arXiv 2106.12379",
        "dense and sparse phases in turns, the pruned weights coming back at zero, the last phase sparse",
    ),
    MethodInfo(
        "rigl",
        RigL,
        "Evci, Gale, Menick, Castro, Elsen: Rigging the Lottery: Making All Tickets Winners, ICML 2020, "
        "arXiv 1911.11134",
        "sparse from the start, small weights giving way to others where the gradient is large",
        total_steps=True,
        starts_dense=False,
        live_zeros=True,
    ),
    MethodInfo(
        "set",
        SET,
        "Mocanu, Mocanu, Stone, Nguyen, Gibescu, Liotta: Scalable training of artificial neural networks with adaptive "
        "sparse connectivity inspired by network science, Nature Communications 9, 2018, arXiv 1707.04780",
        "sparse from the start, small weights giving way to others at random",
        total_steps=True,
        starts_dense=False,
        live_zeros=True,
    ),
    MethodInfo(
        "str",
        STR,
        "Kusupati, Ramanujan, Somani, Wortsman, Jain, Kakade, Farhadi: Soft Threshold Weight Reparameterization for "
        "Learnable Sparsity, ICML 2020, arXiv 2002.03231",
        "a threshold for each layer, trained with the weights that it shrinks",
        exact_budget=False,
        masked_state_zero=False,
        total_steps=True,
        starts_dense=False,
        reparametrized=True,
    ),
    MethodInfo(
        "differentiable",
        DifferentiableSparsification,
        "Lee: Differentiable Sparsification for Deep Neural Networks, arXiv 1910.03201; structured and unstructured "
        "sparsity: arXiv 2006.13716",
        "a trained share of each group's sum, below which weights or filters are zero, under an l_p penalty",
        exact_budget=False,
        masked_state_zero=False,
        total_steps=True,
        starts_dense=False,
        reparametrized=True,
    ),
)


def names() -> list[str]:
    """The names of all methods."""
    return [info.name for info in _METHODS]


def get(name: str) -> MethodInfo:
    """The method of this name. ValueError with the known names for an unknown one, and the nearest if one is near."""
    for info in _METHODS:
        if info.name == name:
            return info
    if not isinstance(name, str):
        raise TypeError(f"methods.get: name is {name!r}, expected one of {', '.join(names())}")
    near = difflib.get_close_matches(name, names(), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"there is no method {name!r}{hint} (known: {', '.join(names())})")
