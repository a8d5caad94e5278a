"""to_layout keeps every element and gives the strides that its layout says."""

import pytest
import torch

from sparse_ops.ops.to_layout import to_layout

SHAPES = {"batch_last": [(16, 3, 9, 7), (5, 33, 1, 2), (1, 4, 3, 3), (0, 2, 2, 2), (37, 65)],
          "channels_last": [(16, 3, 9, 7), (33, 70, 2, 3)], "contiguous": [(3, 17, 4, 5), (64, 19)]}  # fmt: skip
SOURCES = [
    torch.Tensor.contiguous,
    lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    lambda x: x.mT.contiguous().mT,
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layout, shape", [(name, shape) for name, shapes in SHAPES.items() for shape in shapes])
def test_same_elements_other_strides(layout, shape, dtype):
    for source in SOURCES:
        x = source(torch.randn(shape).to(dtype))
        y = to_layout(x, layout)
        assert torch.equal(x, y) and y.dtype == dtype
        order = {"batch_last": {2: (1, 0), 4: (2, 3, 1, 0)}, "channels_last": {4: (0, 2, 3, 1)}}.get(layout, {})
        inner = y.permute(order.get(y.dim(), tuple(range(y.dim()))))
        assert inner.is_contiguous()


def test_is_a_lawful_torch_op():
    x = torch.randn(4, 3, 2, 5, requires_grad=True)
    torch.library.opcheck(torch.ops.sparse_ops.to_layout.default, (x, "batch_last"))
    torch.autograd.gradcheck(lambda x: to_layout(x, "batch_last"), (x.detach().double().requires_grad_(),))


def test_errors():
    with pytest.raises(ValueError, match="layout is 'nhwc' for x of 4 dimensions"):
        to_layout(torch.zeros(1, 2, 3, 4), "nhwc")
    with pytest.raises(ValueError, match="3 dimensions"):
        to_layout(torch.zeros(1, 2, 3), "batch_last")
