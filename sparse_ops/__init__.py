"""The public names of sparse_ops."""

from sparse_ops import methods, nn, optim
from sparse_ops._version import __version__
from sparse_ops.files import load, save, verify
from sparse_ops.inference import export, load_exported, optimize_for_inference
from sparse_ops.masks import magnitude_mask
from sparse_ops.nn.swap import densify, sparsify
from sparse_ops.ops.hypersparse_loss import hypersparse_loss
from sparse_ops.ops.kth_magnitude import kth_magnitude
from sparse_ops.optim.param_groups import param_groups
from sparse_ops.planning import plan, sparsity_report

__all__ = [
    "__version__",
    "densify",
    "export",
    "hypersparse_loss",
    "kth_magnitude",
    "load",
    "load_exported",
    "magnitude_mask",
    "methods",
    "nn",
    "optim",
    "optimize_for_inference",
    "param_groups",
    "plan",
    "save",
    "sparsify",
    "sparsity_report",
    "verify",
]
