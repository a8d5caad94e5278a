"""What the sparse convolution ops check alike: the pattern against the channels, the window against the image."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparse_ops import checks, launch, recycling
from sparse_ops.layouts import is_batch_last

# Of every op: where the values stand, and how the window moves. Sizes are (height, width).
PATTERN = "Tensor row_offsets, Tensor columns, Tensor t_row_offsets, Tensor t_columns, Tensor t_permutation"
WINDOW = "int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, int groups"


def check_weight(
    op: str, pattern: Sequence[Tensor], tensors: dict[str, Tensor], kernel_size: Sequence[int], groups: int
) -> tuple[int, int]:
    """(input channels, output channels) of the pattern's matrix (out, in / groups * kh * kw).

    tensors: the operands by name, of one floating dtype and device with the pattern; `values` fit it where given.
    """
    checks.one_float_dtype(op, tensors)
    out, columns = checks.pattern(op, pattern, next(iter(tensors.values())))
    if "values" in tensors and tensors["values"].shape != pattern[1].shape:
        raise ValueError(f"{op}: values are {tuple(tensors['values'].shape)}, expected {tuple(pattern[1].shape)}")
    taps = kernel_size[0] * kernel_size[1]
    if groups < 1 or out % groups:
        raise ValueError(f"{op}: groups is {groups}, expected a divisor of the {out} output channels")
    if min(kernel_size) < 1 or columns % taps:
        raise ValueError(f"{op}: kernel_size is {tuple(kernel_size)}, the weight's matrix has {columns} columns")
    return columns // taps * groups, out


def output_size(
    op: str,
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """(height, width) of the output of a window over an image."""
    for name, value, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if min(value) < least:
            raise ValueError(f"{op}: {name} is {tuple(value)}, expected at least {least}")
    padded = [size + 2 * p for size, p in zip(input_size, padding, strict=True)]
    window = [d * (k - 1) + 1 for k, d in zip(kernel_size, dilation, strict=True)]
    if window[0] > padded[0] or window[1] > padded[1]:
        raise ValueError(
            f"{op}: the kernel {tuple(kernel_size)} with dilation {tuple(dilation)} covers {tuple(window)} pixels, "
            f"the padded input has {tuple(padded)}"
        )
    height, width = ((p - w) // s + 1 for p, w, s in zip(padded, window, stride, strict=True))
    return height, width


def check_image(op: str, name: str, image: Tensor, n_channels: int, size: Sequence[int] | None = None) -> None:
    """An image batch (N, C, H, W) with the channels, and where given the size, that the weight asks for."""
    if image.dim() != 4:
        raise ValueError(f"{op}: {name} is {tuple(image.shape)}, expected (N, C, H, W)")
    if image.shape[1] != n_channels:
        raise ValueError(f"{op}: {name} has {image.shape[1]} channels, the weight {n_channels}")
    if size is not None and (image.shape[2] != size[0] or image.shape[3] != size[1]):
        raise ValueError(f"{op}: {name} has {tuple(image.shape[2:])} pixels, expected {tuple(size)}")


def convolution() -> Callable[..., Tensor]:
    """`sparse_conv2d` for a backward pass, whose op sees every kind of tensor that autograd hands to it.

    Imported late: it is the gradient of its gradients.
    """
    if launch.transformed():
        from sparse_ops.ops.sparse_conv2d import sparse_conv2d

        return sparse_conv2d
    op: Callable[..., Tensor] = torch.ops.sparse_ops.sparse_conv2d
    return op


def is_channels_last(image: Tensor) -> bool:
    """Channels innermost in memory; an image that is both (one channel, one pixel) counts as contiguous."""
    return not image.is_contiguous() and image.is_contiguous(memory_format=torch.channels_last)


def dense_in_memory(image: Tensor) -> Tensor:
    """The image itself where it is contiguous, channels_last or batch-last, else a contiguous copy."""
    return image if is_channels_last(image) or is_batch_last(image) else image.contiguous()


def layout(image: Tensor) -> int:
    """What the C++ kernels call the layout: 0 contiguous, 1 channels_last, 2 batch-last; the first that it is."""
    if image.is_contiguous():
        return 0
    return 1 if image.is_contiguous(memory_format=torch.channels_last) else 2


def like_in_memory(image: Tensor, y: Tensor) -> Tensor:
    """The image in the layout of y, which has its shape: itself where it is."""
    return image if image.stride() == y.stride() else torch.empty_like(y).copy_(image)


def new_image(like: Tensor, n_channels: int, size: Sequence[int]) -> Tensor:
    """An uninitialised image batch in the layout of `like`."""
    n = like.shape[0]
    if not like.is_contiguous() and is_batch_last(like):
        return recycling.empty((*size, n_channels, n), like).permute(3, 2, 0, 1)
    memory_format = torch.channels_last if is_channels_last(like) else torch.contiguous_format
    return torch.empty((n, n_channels, *size), dtype=like.dtype, device=like.device, memory_format=memory_format)
