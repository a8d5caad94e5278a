"""The gradient of a sparse convolution in its values: programs share the values of an output channel among them."""

import triton
import triton.language as tl

from .sparse_conv2d import BLOCK, pixels, window
from .tiles import compute, element, rounded, wide


@triton.jit(do_not_specialize=["PIXELS", "H", "W", "OH", "OW", "CHANNELS", "OUTPUTS"])
def _sparse_conv2d_weight_grad_kernel(
    row_offsets_ptr, columns_ptr, dvalues_ptr,  # (O + 1,) and (nnz,) int32, (nnz,)
    x_ptr, dy_ptr,  # (N, C, H, W), (N, O, OH, OW)
    PIXELS, H, W, OH, OW, CHANNELS, OUTPUTS,  # CHANNELS and OUTPUTS of a group
    stride_xn, stride_xc, stride_xh, stride_xw,
    stride_yn, stride_yc, stride_yh, stride_yw,
    COMPUTE: tl.constexpr, DVALUES: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr,
    SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    o = tl.program_id(0)
    group_ptr = x_ptr + (o // OUTPUTS).to(tl.int64) * CHANNELS * stride_xc
    output_ptr = dy_ptr + o.to(tl.int64) * stride_yc
    start = tl.load(row_offsets_ptr + o) + tl.program_id(1)
    for i in range(start, tl.load(row_offsets_ptr + o + 1), tl.num_programs(1)):
        column = tl.load(columns_ptr + i)
        c, kh, kw = column // (KH * KW), column % (KH * KW) // KW * DH, column % KW * DW
        acc = tl.zeros((BLOCK,), dtype=COMPUTE)
        for first in range(0, PIXELS, BLOCK):
            n, oh, ow, valid = pixels(first, PIXELS, OH, OW, BLOCK)
            h, w = (oh * SH - PH + kh).to(tl.int64), (ow * SW - PW + kw).to(tl.int64)
            seen = valid & (h >= 0) & (h < H) & (w >= 0) & (w < W)
            place = n * stride_yn + oh.to(tl.int64) * stride_yh + ow.to(tl.int64) * stride_yw
            dy = wide(tl.load(output_ptr + place, mask=seen, other=0.0), COMPUTE)
            pixel = n * stride_xn + c.to(tl.int64) * stride_xc + h * stride_xh + w * stride_xw
            acc += dy * wide(tl.load(group_ptr + pixel, mask=seen, other=0.0), COMPUTE)
        tl.store(dvalues_ptr + i, rounded(tl.sum(acc), DVALUES))


def sparse_conv2d_weight_grad(
    x, dy, row_offsets, columns, dvalues, kernel_size, stride, padding, dilation, groups
) -> None:
    """Write the gradient of the values into dvalues; x and dy of any strides. Launches only: the op has checked."""
    if dvalues.numel() == 0:
        return
    N, O, OH, OW = dy.shape
    shares = min(16, triton.cdiv(dvalues.numel(), O))
    _sparse_conv2d_weight_grad_kernel[(O, shares)](
        row_offsets, columns, dvalues, x, dy, N * OH * OW, *x.shape[2:], OH, OW, x.shape[1] // groups, O // groups,
        *x.stride(), *dy.stride(), COMPUTE=compute(x.dtype), DVALUES=element(dvalues.dtype), BLOCK=BLOCK,
        **window(kernel_size, stride, padding, dilation),
    )  # fmt: skip
