"""torch's attention as it is captured: the same numbers in steps that a graph of layers can hold, without copies."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@contextmanager
def capturable(model: nn.Module) -> Iterator[None]:
    """Self-attention of the model by `_self_attention`, and a mask is a mask.

    torch's Transformers look whether a mask's values are those of a causal one, which saves them time. A graph holds
    no such branch; with the mask as it is given they compute the same.
    """
    module: Any = nn.modules.transformer
    before = getattr(module, "_detect_is_causal_mask", None)
    if before is not None:
        module._detect_is_causal_mask = lambda mask, is_causal=None, size=None: is_causal is True
    # on the objects and not on the class: other models may be running in other threads
    plain = [m for m in model.modules() if isinstance(m, nn.MultiheadAttention) and "forward" not in m.__dict__]
    plain = [m for m in plain if type(m).forward is nn.MultiheadAttention.forward]
    for attention in plain:
        attention.forward = MethodType(_forward, attention)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for attention in plain:
            del attention.forward
        if before is not None:
            module._detect_is_causal_mask = before


def _forward(
    self: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """nn.MultiheadAttention's: by `_self_attention` where it is that, by torch's code elsewhere."""
    masks = [mask for mask in (key_padding_mask, attn_mask) if mask is not None]
    if (
        query is key and key is value and query.dim() == 3 and not need_weights and not self.training
        and self._qkv_same_embed_dim and self.bias_k is None and not self.add_zero_attn
        and all(mask.dtype in (torch.bool, query.dtype) for mask in masks)
        and not (is_causal and attn_mask is None)  # an error, which is torch's to raise
    ):  # fmt: skip
        return _self_attention(self, query, key_padding_mask, attn_mask, is_causal), None
    return nn.MultiheadAttention.forward(
        self, query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
    )


def _self_attention(
    self: nn.MultiheadAttention, x: Tensor, padding: Tensor | None, mask: Tensor | None, is_causal: bool
) -> Tensor:
    """Attention of x (batch, length, features), or (length, batch, features), to itself.

    torch's own code turns x to (length, batch, features), copies the queries, keys and values one behind the other and
    turns the result back. Here the three are views of one product, and the last layer's result lies as x does, so that
    a residual addition goes into that layer.
    """
    n, length, features = x.shape if self.batch_first else (x.shape[1], x.shape[0], x.shape[2])
    heads = self.num_heads
    parts = F.linear(x, self.in_proj_weight, self.in_proj_bias).view(*x.shape[:2], 3, heads, features // heads)
    q, k, v = parts.permute(2, 0, 3, 1, 4) if self.batch_first else parts.permute(2, 1, 3, 0, 4)
    causal = is_causal and padding is None
    bias = None if mask is None or causal else _additive(mask, x.dtype)
    if bias is not None:
        bias = bias.view(n, heads, length, length) if bias.dim() == 3 else bias.view(1, 1, length, length)
    if padding is not None:
        of_keys = _additive(padding, x.dtype).view(n, 1, 1, length)
        bias = of_keys if bias is None else bias + of_keys
    y = F.scaled_dot_product_attention(q, k, v, bias, is_causal=causal)
    y = y.transpose(1, 2) if self.batch_first else y.permute(2, 0, 1, 3)
    return F.linear(y.reshape(x.shape), self.out_proj.weight, self.out_proj.bias)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that is added; where torch's masks are bool, True leaves a position out."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))
