"""Random sparse problems, their dense float64 answers and the tolerances, shared by the tests of CSR ops."""

import torch

from sparse_ops.formats import Pattern

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# (M, K, N): empty in each dimension, one element, one column, ragged, several tiles of every instruction set
SHAPES = [(0, 5, 3), (5, 0, 3), (4, 6, 0), (1, 1, 1), (40, 37, 1), (17, 33, 5), (50, 64, 16), (70, 90, 150)]
EPSILON = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def matrix(M, K, density, dtype, seed=0, device="cpu"):
    """(dense, pattern, values) of a random matrix; row 1 is empty, row 2 full, where there are so many."""
    rng = torch.Generator().manual_seed(seed)
    keep = torch.rand(M, K, generator=rng) < density
    keep[1:2] = False
    keep[2:3] = True
    dense = (torch.randn(M, K, generator=rng, dtype=torch.float64) * keep).to(device, dtype)
    return dense, *Pattern.from_dense(dense)


def operand(rows, n, transposed, dtype, seed, device="cpu"):
    rng = torch.Generator().manual_seed(seed)
    t = torch.randn((n, rows) if transposed else (rows, n), generator=rng, dtype=torch.float64)
    return t.to(device, dtype)


def bits_by_threads(op, *args):
    """What op(*args) returns with 1, 2, 3 and 5 threads, as integers, so that NaNs and the sign of zero count."""
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            result = op(*args)
            found.append(result.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[result.element_size()]))
    finally:
        torch.set_num_threads(before)
    return found


def close(actual, expected, magnitude, terms, dtype):
    """Each sum of `terms` products errs by at most their count times eps of the sum of magnitudes, then is rounded."""
    eps = EPSILON[torch.float64 if dtype == torch.float64 else torch.float32]
    bound = 2 * (terms + 2) * eps * magnitude + EPSILON[dtype] * expected.abs() + torch.finfo(dtype).tiny
    if dtype == torch.float16:
        bound = bound + 2.0**-24  # a subnormal's spacing
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    assert ((actual.double() - expected).abs() <= bound).all()
