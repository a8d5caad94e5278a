"""Convolution of images with a CSR weight: one program per output channel and block of output pixels."""

import triton
import triton.language as tl

from .tiles import compute, element, rounded, wide

BLOCK = 1024


@triton.jit
def pixels(first, size, HEIGHT, WIDTH, BLOCK: tl.constexpr):
    """Image, row and column of a block of pixels of a batch, and which of them there are."""
    p = first + tl.arange(0, BLOCK).to(tl.int64)
    image = p // (HEIGHT * WIDTH)
    inside = (p % (HEIGHT * WIDTH)).to(tl.int32)
    return image, inside // WIDTH, inside % WIDTH, p < size


@triton.jit(do_not_specialize=["O", "PIXELS", "H", "W", "OH", "OW", "CHANNELS", "OUTPUTS"])
def _sparse_conv2d_kernel(
    row_offsets_ptr, columns_ptr, values_ptr,  # (O + 1,) and (nnz,) int32, (nnz,): (O, C / groups * KH * KW)
    x_ptr, bias_ptr, addend_ptr, y_ptr,  # (N, C, H, W), (O,) or None, None or like y, (N, O, OH, OW)
    O, PIXELS, H, W, OH, OW, CHANNELS, OUTPUTS,  # CHANNELS and OUTPUTS of a group
    stride_xn, stride_xc, stride_xh, stride_xw,
    stride_yn, stride_yc, stride_yh, stride_yw,
    COMPUTE: tl.constexpr, Y: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    o = tl.program_id(0) % O  # one axis, since the others end at 65535
    n, oh, ow, valid = pixels((tl.program_id(0) // O).to(tl.int64) * BLOCK, PIXELS, OH, OW, BLOCK)
    h, w = oh * SH - PH, ow * SW - PW
    group_ptr = x_ptr + (o // OUTPUTS).to(tl.int64) * CHANNELS * stride_xc
    corner = n * stride_xn + h.to(tl.int64) * stride_xh + w.to(tl.int64) * stride_xw
    acc = tl.zeros((BLOCK,), dtype=COMPUTE)
    for i in range(tl.load(row_offsets_ptr + o), tl.load(row_offsets_ptr + o + 1)):
        column = tl.load(columns_ptr + i)
        a = wide(tl.load(values_ptr + i), COMPUTE)
        c, kh, kw = column // (KH * KW), column % (KH * KW) // KW * DH, column % KW * DW
        tap = c.to(tl.int64) * stride_xc + kh.to(tl.int64) * stride_xh + kw.to(tl.int64) * stride_xw
        seen = valid & (h + kh >= 0) & (h + kh < H) & (w + kw >= 0) & (w + kw < W)
        acc += a * wide(tl.load(group_ptr + corner + tap, mask=seen, other=0.0), COMPUTE)
    if bias_ptr is not None:
        acc += wide(tl.load(bias_ptr + o), COMPUTE)
    place = n * stride_yn + o.to(tl.int64) * stride_yc + oh.to(tl.int64) * stride_yh + ow.to(tl.int64) * stride_yw
    if addend_ptr is not None:
        acc += wide(tl.load(addend_ptr + place, mask=valid, other=0.0), COMPUTE)
    if ACTIVATION == "relu":
        acc = tl.where(acc < 0, 0.0, acc)  # keeps a NaN
    elif ACTIVATION == "gelu":
        acc = 0.5 * acc * (1 + tl.erf(acc * 0.7071067811865476))
    tl.store(y_ptr + place, rounded(acc, Y), mask=valid)


def window(kernel_size, stride, padding, dilation):
    """The geometry as constants of a kernel: few networks have more than a handful."""
    names = ("KH", "KW", "SH", "SW", "PH", "PW", "DH", "DW")
    return dict(zip(names, (*kernel_size, *stride, *padding, *dilation)))


def sparse_conv2d(
    x, values, row_offsets, columns, bias, y, kernel_size, stride, padding, dilation, groups, addend, activation
) -> None:
    """Write the convolution of x into y, both of any strides, addend of y's. Launches only: the op has checked."""
    N, O, OH, OW = y.shape
    if y.numel() == 0:
        return
    _sparse_conv2d_kernel[(O * triton.cdiv(N * OH * OW, BLOCK),)](
        row_offsets, columns, values, x, bias, addend, y, O, N * OH * OW, *x.shape[2:], OH, OW, x.shape[1] // groups,
        O // groups, *x.stride(), *y.stride(), COMPUTE=compute(x.dtype), Y=element(y.dtype), ACTIVATION=activation,
        BLOCK=BLOCK, **window(kernel_size, stride, padding, dilation),
    )  # fmt: skip
