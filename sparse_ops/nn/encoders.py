"""torch's transformer encoders with sparse layers inside, which its fused kernel does not take."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from sparse_ops.nn import choice
from sparse_ops.nn.base import SparseModule


def faster_fused(
    model: nn.Module, swaps: Mapping[nn.Module, nn.Module], examples: Sequence[Any]
) -> dict[nn.Module, str]:
    """The layers that stay dense although they are faster sparse, and why: the fused kernel is faster than both.

    One sparse layer keeps its whole encoder off the kernel, so that an encoder is measured as a whole.
    """
    found = [
        m
        for m in model.modules()
        if isinstance(m, nn.TransformerEncoderLayer) and not swaps.keys().isdisjoint(m.children())
    ]
    kept: dict[nn.Module, str] = {}
    if not found:
        return kept
    for encoder, inputs in zip(found, choice.record_inputs(model, found, examples), strict=True):
        if not inputs:
            continue
        sparse = copy.copy(encoder)
        sparse._modules = {key: swaps.get(m, m) if m is not None else m for key, m in encoder._modules.items()}
        call_its_layers(sparse)
        with choice.evaluating(encoder), choice.evaluating(sparse):
            faster, reason = choice.judge(choice.measure(encoder, sparse, inputs))
        if not faster:
            kept |= {m: f"beside torch's fused encoder {reason}" for m in encoder.children() if m in swaps}
    return kept


def call_its_layers(encoder: nn.TransformerEncoderLayer) -> None:
    """Without a gradient it would read `weight` of its linear layers, made dense for each call, in a fused kernel.

    0 in this attribute of torch tells it to call the layers instead; 1 and 2 are its marks of ReLU and GELU.
    """
    activation = encoder.activation
    if any(isinstance(layer, SparseModule) for layer in (encoder.linear1, encoder.linear2)):
        encoder.activation_relu_or_gelu = 0
    elif activation is nn.functional.relu or isinstance(activation, nn.ReLU):
        encoder.activation_relu_or_gelu = 1
    elif activation is nn.functional.gelu or isinstance(activation, nn.GELU):
        encoder.activation_relu_or_gelu = 2


def keep_padded(encoder: nn.TransformerEncoder) -> None:
    """With a padding mask and no gradient it would hand its layers nested tensors, which only the fused kernel takes.

    The mark holds torch's own choice, made from more than `enable_nested_tensor`, for the way back.
    """
    marked = "_nested_when_dense" in encoder.__dict__
    if any(isinstance(layer, SparseModule) for layer in encoder.modules()):
        if not marked:
            encoder.__dict__["_nested_when_dense"] = encoder.use_nested_tensor
        encoder.use_nested_tensor = False
    elif marked:
        encoder.use_nested_tensor = encoder.__dict__.pop("_nested_when_dense")
