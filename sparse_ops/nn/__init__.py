"""Layers that store only live weights, and the ways from dense models to sparse ones and back."""

from sparse_ops.nn.conv import SparseConv2d
from sparse_ops.nn.gates import SparseGates
from sparse_ops.nn.linear import SparseLinear
from sparse_ops.nn.swap import densify, sparsify

__all__ = ["SparseConv2d", "SparseGates", "SparseLinear", "densify", "sparsify"]
