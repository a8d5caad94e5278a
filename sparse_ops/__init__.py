"""The public names of sparse_ops."""

from sparse_ops._version import __version__

__all__ = ["__version__"]
