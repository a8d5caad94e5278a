"""The public names of sparse_ops."""

from sparse_ops import nn
from sparse_ops._version import __version__
from sparse_ops.files import load, save, verify
from sparse_ops.nn.swap import densify, sparsify

__all__ = ["__version__", "densify", "load", "nn", "save", "sparsify", "verify"]
