"""What a choice by measuring depends on: the instruction set, the number of threads, the versions."""

from typing import Any

import torch

from sparse_ops import launch


def here() -> dict[str, Any]:
    """This machine, as far as choices depend on it."""
    return {"isa": launch.isa(), "threads": torch.get_num_threads()}


def differs(found: dict[str, Any]) -> bool:
    """Whether choices that were measured on `found` have to be measured again."""
    return found != here()
