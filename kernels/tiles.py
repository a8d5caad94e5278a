"""What several kernels share: rows of a multi-tensor table, packed bits, ordered keys, rounding, tanh and sech^2."""

import triton
import triton.language as tl

ELEMENT = {
    "torch.float16": tl.float16,
    "torch.bfloat16": tl.bfloat16,
    "torch.float32": tl.float32,
    "torch.float64": tl.float64,
}

# Columns of a table row (int64): what `sparse_ops.tables` writes and `sparse_ops.kernels` read.
COLUMNS = tl.constexpr(16)
NUMEL = tl.constexpr(0)
SCOPE = tl.constexpr(1)
WEIGHT = tl.constexpr(2)
GRAD = tl.constexpr(3)
MASK = tl.constexpr(4)
GROUP = tl.constexpr(5)
STATE = tl.constexpr(6)  # and the two columns after it
STEP = tl.constexpr(9)
ORDER = tl.constexpr(15)  # how many chunks the tensors before this one in the list have


def element(dtype):
    """Triton's name of a torch floating dtype."""
    return ELEMENT[str(dtype)]


def compute(dtype):
    """The dtype in which elements of a dtype are computed: float32 for halves."""
    return tl.float64 if str(dtype) == "torch.float64" else tl.float32


def eights(dtype):
    """Rows of 8 in a tile of 4 warps, so that a thread's part of a weight's tile is 16 bytes."""
    return 128 if str(dtype) in ("torch.float16", "torch.bfloat16") else 64


@triton.jit
def pointer(rows_ptr, row, COLUMN: tl.constexpr, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The address in a column as a pointer; ALIGNED promises 16-byte multiples, without which no load is 128 bits."""
    address = tl.load(rows_ptr + row * COLUMNS + COLUMN).to(tl.pointer_type(TYPE))
    if ALIGNED:
        address = tl.multiple_of(address, 16)
    return address


@triton.jit
def chunk_of(rows_ptr, chunks_ptr, p, ALIGNED: tl.constexpr, CHUNK: tl.constexpr):
    """Row, scope, first element (int64) and number of elements (int32) of chunk p; ALIGNED: a multiple of 8."""
    row = tl.load(chunks_ptr + p * 2)
    start = tl.load(chunks_ptr + p * 2 + 1).to(tl.int64) * CHUNK
    scope = tl.load(rows_ptr + row * COLUMNS + SCOPE)
    size = tl.minimum(tl.load(rows_ptr + row * COLUMNS + NUMEL) - start, CHUNK).to(tl.int32)
    if ALIGNED:
        size = tl.multiple_of(size, 8)
    return row, scope, start, size


@triton.jit
def packed(rows_ptr, row, COLUMN: tl.constexpr, start):
    """The packed bits of a column from element `start` on, which is a multiple of 8; null where there are none."""
    address = tl.load(rows_ptr + row * COLUMNS + COLUMN)
    return tl.where(address != 0, address + start // 8, 0).to(tl.pointer_type(tl.uint8))


@triton.jit
def bits(bits_ptr, first, size, OTHER: tl.constexpr, EIGHTS: tl.constexpr):
    """Bits first, first + 1, ... of `size` packed ones as bools (EIGHTS, 8); without any, those of the byte OTHER."""
    eighth = first // 8 + tl.arange(0, EIGHTS)
    some = bits_ptr.to(tl.int64) != 0
    byte = tl.load(bits_ptr + eighth, mask=(eighth * 8 < size) & some, other=OTHER)
    return ((byte[:, None].to(tl.int32) >> tl.arange(0, 8)[None, :]) & 1) != 0


@triton.jit
def wide(x, TYPE: tl.constexpr):
    """x in float32 or float64; bfloat16 by bits, since the interpreter's cast loses denormals."""
    if x.dtype == tl.bfloat16:
        x = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(TYPE)


@triton.jit
def rounded(x, TYPE: tl.constexpr):
    """x in another type, to nearest even; bfloat16 by bits, since the interpreter's cast truncates."""
    if TYPE == tl.bfloat16:
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        nearest = tl.where(x == x, nearest, (bits >> 16) | 0x40)  # a NaN stays one
        result = nearest.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        result = x.to(TYPE)
    return result


@triton.jit
def key(x, KEY: tl.constexpr):
    """The bits of |x| as an unsigned integer of KEY's width, in the order of the magnitudes; a NaN is above all."""
    if KEY == tl.float64:
        result = wide(x, KEY).to(tl.uint64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    else:
        result = wide(x, KEY).to(tl.uint32, bitcast=True) & 0x7FFFFFFF
    return result


@triton.jit
def split_scale(s, TYPE: tl.constexpr):
    """Two factors of a float64 s > 0 in TYPE, to be multiplied to |w| one by one: s may be beyond float32."""
    first = tl.where(s > 18446744073709551616.0, 18446744073709551616.0, 1.0)  # 2^64: exact
    return first.to(TYPE), (s / first).to(TYPE)


@triton.jit
def sech_squared(x):
    """sech^2 of x >= 0 without cancellation: 4 e / (1 + e)^2 with e = exp(-2 x) is right in the tail too."""
    e = tl.exp(-2 * x)
    return 4 * e / ((1 + e) * (1 + e))


@triton.jit
def tanh_and_sech_squared(x):
    """tanh and sech^2 of x >= 0 from one exponential.

    For small x (1 - e) / (1 + e) cancels: there float32 takes an odd polynomial (a fit on [0, 0.5] with relative error
    1.5e-8) and float64 the Taylor series.
    """
    e = tl.exp(-2 * x)
    if x.dtype == tl.float64:
        y = tl.minimum(x * x, 0.25)
        small = 1.0 / 3 - y * (
            2.0 / 15 - y * (17.0 / 315 - y * (62.0 / 2835 - y * (1382.0 / 155925 - y * (21844.0 / 6081075))))
        )
        tanh = tl.where(x < 0.03, x - x * y * small, (1 - e) / (1 + e))
    else:
        y = tl.minimum(x * x, 0.25)
        small = -0.33333148 + y * (0.13325987 + y * (-0.053052926 + y * 0.017256941))
        tanh = tl.where(x < 0.5, x + x * y * small, (1 - e) / (1 + e))
    return tanh, 4 * e / ((1 + e) * (1 + e))
