"""Optimisers with the sweep inside, and hooks that give it to any other."""

from sparse_ops.optim.adamw import AdamW
from sparse_ops.optim.hooks import Attachment, attach
from sparse_ops.optim.param_groups import param_groups
from sparse_ops.optim.sgd import SGD
from sparse_ops.optim.sweep import Sweep

__all__ = ["SGD", "AdamW", "Attachment", "Sweep", "attach", "param_groups"]
