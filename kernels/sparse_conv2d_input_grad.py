"""The gradient of a sparse convolution in its input: one program per input channel and block of input pixels."""

import triton
import triton.language as tl

from .sparse_conv2d import BLOCK, pixels, window
from .tiles import compute, element, rounded, wide


@triton.jit(do_not_specialize=["C", "PIXELS", "H", "W", "OH", "OW", "CHANNELS", "OUTPUTS"])
def _sparse_conv2d_input_grad_kernel(
    t_row_offsets_ptr, t_columns_ptr, t_permutation_ptr,  # the transpose: rows (c, kh, kw) of output channels
    values_ptr, dy_ptr, dx_ptr,  # (nnz,), (N, O, OH, OW), (N, C, H, W)
    C, PIXELS, H, W, OH, OW, CHANNELS, OUTPUTS,  # CHANNELS and OUTPUTS of a group
    stride_yn, stride_yc, stride_yh, stride_yw,
    stride_xn, stride_xc, stride_xh, stride_xw,
    COMPUTE: tl.constexpr, X: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) % C  # one axis, since the others end at 65535
    n, h, w, valid = pixels((tl.program_id(0) // C).to(tl.int64) * BLOCK, PIXELS, H, W, BLOCK)
    first_output = c // CHANNELS * OUTPUTS
    image = n * stride_yn
    acc = tl.zeros((BLOCK,), dtype=COMPUTE)
    for tap in range(KH * KW):
        oh, ow = h + PH - tap // KW * DH, w + PW - tap % KW * DW
        seen = valid & (oh >= 0) & (oh % SH == 0) & (oh // SH < OH) & (ow >= 0) & (ow % SW == 0) & (ow // SW < OW)
        pixel = image + (oh // SH).to(tl.int64) * stride_yh + (ow // SW).to(tl.int64) * stride_yw
        row = c % CHANNELS * (KH * KW) + tap
        for i in range(tl.load(t_row_offsets_ptr + row), tl.load(t_row_offsets_ptr + row + 1)):
            o = tl.load(t_columns_ptr + i)
            mine = (o >= first_output) & (o < first_output + OUTPUTS)
            a = wide(tl.load(values_ptr + tl.load(t_permutation_ptr + i), mask=mine, other=0.0), COMPUTE)
            dy = tl.load(dy_ptr + pixel + o.to(tl.int64) * stride_yc, mask=seen & mine, other=0.0)
            acc += a * wide(dy, COMPUTE)
    place = n * stride_xn + c.to(tl.int64) * stride_xc + h.to(tl.int64) * stride_xh + w.to(tl.int64) * stride_xw
    tl.store(dx_ptr + place, rounded(acc, X), mask=valid)


def sparse_conv2d_input_grad(
    dy, values, t_row_offsets, t_columns, t_permutation, dx, kernel_size, stride, padding, dilation, groups
) -> None:
    """Write the gradient of the input into dx; dy and dx of any strides. Launches only: the op has checked."""
    N, C, H, W = dx.shape
    if dx.numel() == 0:
        return
    _sparse_conv2d_input_grad_kernel[(C * triton.cdiv(N * H * W, BLOCK),)](
        t_row_offsets, t_columns, t_permutation, values, dy, dx, C, N * H * W, H, W, *dy.shape[2:], C // groups,
        dy.shape[1] // groups, *dy.stride(), *dx.stride(), COMPUTE=compute(dy.dtype), X=element(dx.dtype), BLOCK=BLOCK,
        **window(kernel_size, stride, padding, dilation),
    )  # fmt: skip
