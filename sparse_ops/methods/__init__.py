"""Training methods: each takes a dense network to a sparse one behind the same contract."""

from sparse_ops.methods.acdc import ACDC
from sparse_ops.methods.art import ART
from sparse_ops.methods.collapse import CollapseWarning
from sparse_ops.methods.diffsparse import DifferentiableSparsification
from sparse_ops.methods.evolutionary_set import SET
from sparse_ops.methods.gmp import GMP
from sparse_ops.methods.greg import GReg, GReg2
from sparse_ops.methods.magnitude import OneShot
from sparse_ops.methods.options import Options
from sparse_ops.methods.registry import MethodInfo, get, names
from sparse_ops.methods.rigl import RigL
from sparse_ops.methods.soft_threshold_str import STR
from sparse_ops.methods.updater import PhaseChange, Sparsifier
from sparse_ops.nn.parametrized import bake

__all__ = [
    "ACDC",
    "ART",
    "GMP",
    "SET",
    "STR",
    "CollapseWarning",
    "DifferentiableSparsification",
    "GReg",
    "GReg2",
    "MethodInfo",
    "OneShot",
    "Options",
    "PhaseChange",
    "RigL",
    "Sparsifier",
    "bake",
    "get",
    "names",
]
