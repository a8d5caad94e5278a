"""Layers that store only live weights, and the ways from dense models to sparse ones and back."""

from sparse_ops.nn.linear import SparseLinear

__all__ = ["SparseLinear"]
