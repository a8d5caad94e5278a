"""sparse_conv2d where the output is larger than the system's pages, and where few values favour large tiles."""

from pathlib import Path

import pytest
import torch
from conv_problems import LAYOUT_OF, LAYOUTS, Poisoned, Problem, Shape

from sparse_ops.formats import Pattern
from sparse_ops.ops.sparse_conv2d import sparse_conv2d

EXPANDING = Shape(4, 8, 64, (64, 64), (1, 1), padding=(0, 0))
# More than 6 MB of float32, written past the caches; lines of 24 images begin in the middle of the cache's.
STREAMED = Shape(16, 4, 32, (64, 60), (3, 3), padding=(1, 1))
HALF_LINES = Shape(24, 4, 24, (64, 60), (3, 3), padding=(1, 1))
REDUCING = Shape(16, 128, 16, (28, 28), (1, 1), padding=(0, 0))  # of few values all of it once was a single tile


@LAYOUTS
@pytest.mark.parametrize("density", [0.01, 0.1])
@pytest.mark.parametrize(
    "shape", [EXPANDING, STREAMED, HALF_LINES, REDUCING], ids=["expanding", "streamed", "half lines", "reducing"]
)
def test_large_images_agree_with_dense(shape, density, layout, isa):
    p = Problem(shape, density=density, layout=layout)
    with Poisoned():
        y = sparse_conv2d(p.x, p.values, *p.pattern.tensors(), p.bias, *shape.window)
    p.check("y", y)


@LAYOUTS
def test_a_large_output_asks_for_huge_pages(layout):
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this system has no transparent huge pages")
    x, weight = LAYOUT_OF[layout](torch.randn(16, 2, 128, 128)), torch.randn(32, 2, 1, 1)
    pattern, values = Pattern.from_dense(weight)
    y = sparse_conv2d(x, values, *pattern.tensors(), None, (1, 1))
    torch.testing.assert_close(y, torch.nn.functional.conv2d(x, weight))
    middle, inside = y.data_ptr() + y.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            begin, end = (int(address, 16) for address in first.split("-"))
            inside = begin <= middle < end
        elif inside and first == "VmFlags:":
            assert "hg" in line.split()
            return
    raise AssertionError("the output's memory is not listed")
