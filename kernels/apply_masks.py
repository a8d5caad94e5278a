"""Zero what a packed mask prunes: one program per block of weights."""

import triton
import triton.language as tl


@triton.jit
def _apply_masks_kernel(
    t_ptr,  # (N,) floats
    mask_ptr,  # (ceil(N / 8),) bytes, least significant bit first
    N,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    bits = tl.load(mask_ptr + n // 8, mask=n < N, other=255)
    pruned = ((bits >> (n % 8).to(tl.uint8)) & 1) == 0
    tl.store(t_ptr + n, tl.zeros((BLOCK,), dtype=t_ptr.dtype.element_ty), mask=(n < N) & pruned)


def apply_masks(t, mask) -> None:
    """Write +0 into t where its bit is 0. Launches only: the op has checked."""
    N = t.numel()
    if N == 0:
        return
    _apply_masks_kernel[(triton.cdiv(N, 4096),)](t, mask, N, BLOCK=4096)
