"""torch.func's transforms and forward-mode AD through sparse layers give what they give through the dense ones."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from sparse_ops.nn import SparseConv2d, SparseLinear
from sparse_ops.ops.csr_spmm import csr_spmm
from sparse_ops.ops.sparse_conv2d import sparse_conv2d

# of torch's own rules, as it makes them
pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node"),
]


def pruned(layer):
    with torch.no_grad():
        layer.weight *= torch.rand_like(layer.weight) < 0.4
    return layer


def make(kind):
    """(dense, sparse, x) in float64."""
    torch.manual_seed(0)
    if kind == "linear":
        dense, x = nn.Linear(6, 4, bias=False), torch.randn(3, 6)
        return pruned(dense.double()), SparseLinear.from_dense(dense), x.double()
    if kind == "one sample":
        dense, x = nn.Linear(6, 4), torch.randn(6)
        return pruned(dense.double()), SparseLinear.from_dense(dense), x.double()
    dense, x = nn.Conv2d(4, 6, 3, padding=1, groups=2), torch.randn(2, 4, 5, 3)
    return pruned(dense.double()), SparseConv2d.from_dense(dense), x.double()


def dual(f, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, x.cos()))).tangent


def batch_of_gradients(f, x):
    x = x.clone().requires_grad_()
    y = f(x)
    return torch.autograd.grad(y, x, torch.stack([torch.ones_like(y), y.detach()]), is_grads_batched=True)[0]


def cubes(f):
    return lambda x: f(x).pow(3).sum()


ag = torch.autograd.functional
OF_INPUTS = {
    "grad": lambda f, x: grad(cubes(f))(x),
    "grad of grad": lambda f, x: grad(lambda x: grad(cubes(f))(x).square().sum())(x),
    "jacrev": lambda f, x: jacrev(f)(x),
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "hessian": lambda f, x: hessian(cubes(f))(x),
    "jvp": lambda f, x: jvp(f, (x,), (x.cos(),))[1],
    "jvp of grad": lambda f, x: jvp(grad(cubes(f)), (x,), (x.cos(),))[1],
    "vjp": lambda f, x: vjp(f, x)[1](torch.ones_like(f(x)))[0],
    "linearize": lambda f, x: torch.func.linearize(f, x)[1](x.cos()),
    "vmap": lambda f, x: vmap(f)(torch.stack([x, 2 * x])),
    "vmap, another dimension": lambda f, x: vmap(f, in_dims=-1, out_dims=-1)(torch.stack([x, 2 * x], -1)),
    "vmap of vmap": lambda f, x: vmap(vmap(f))(torch.stack([x, -x, 2 * x, x / 2]).view(2, 2, *x.shape)),
    "vmap of grad": lambda f, x: vmap(grad(cubes(f)))(torch.stack([x, 2 * x])),
    "grad of vmap": lambda f, x: grad(lambda xs: vmap(cubes(f))(xs).sum())(torch.stack([x, 2 * x])),
    "functionalize": lambda f, x: torch.func.functionalize(f)(x),
    "forward-mode AD": dual,
    "is_grads_batched": batch_of_gradients,
    "jacobian": lambda f, x: ag.jacobian(f, x),
    "jacobian, vectorized": lambda f, x: ag.jacobian(f, x, vectorize=True),
    "jacobian, forward": lambda f, x: ag.jacobian(f, x, vectorize=True, strategy="forward-mode"),
    "autograd's hessian": lambda f, x: ag.hessian(cubes(f), x, vectorize=True),
    "autograd's jvp": lambda f, x: ag.jvp(f, x, x.cos())[1],
    "hvp": lambda f, x: ag.hvp(cubes(f), x, x.cos())[1],
}
KINDS = ["linear", "one sample", "convolution"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OF_INPUTS)
def test_of_inputs(name, kind):
    dense, sparse, x = make(kind)
    torch.testing.assert_close(OF_INPUTS[name](sparse, x), OF_INPUTS[name](dense, x))
    if name not in ("is_grads_batched",):
        with torch.no_grad():
            torch.testing.assert_close(OF_INPUTS[name](sparse, x), OF_INPUTS[name](dense, x))


def weights(layer):
    """The parameters, and how to read their gradients or tangents off the dense layer's."""
    return {name: p.detach() for name, p in layer.named_parameters()}


def as_values(sparse, found, dim=0):
    """A dict of dense gradients as those of the sparse layer; `dim` dimensions of a batch in front."""
    weight = found.pop("weight").flatten(dim + 1)
    return {"values": weight[..., sparse.pattern.rows(), sparse.columns.long()]} | found


@pytest.mark.parametrize("kind", KINDS)
def test_of_parameters(kind):
    dense, sparse, x = make(kind)

    def loss(layer):
        return lambda p, x: functional_call(layer, p, (x,)).pow(3).sum()

    xs = torch.stack([x, -x, 2 * x])
    expected = as_values(sparse, grad(loss(dense))(weights(dense), x))
    torch.testing.assert_close(grad(loss(sparse))(weights(sparse), x), expected)
    expected = as_values(sparse, vmap(grad(loss(dense)), (None, 0))(weights(dense), xs), 1)
    torch.testing.assert_close(vmap(grad(loss(sparse)), (None, 0))(weights(sparse), xs), expected)
    tangents = {name: p.sin() for name, p in weights(dense).items()}  # 0 where a weight is
    own = as_values(sparse, dict(tangents))
    for layer, t in ((dense, tangents), (sparse, own)):
        _, found = jvp(lambda p, layer=layer: functional_call(layer, p, (x,)), (weights(layer),), (t,))
        expected = found if layer is dense else expected
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_ensemble(kind):
    dense, sparse, x = make(kind)
    for in_dims in ((0, None), (0, 0)):
        found = []
        for layer in (dense, sparse):
            stacked = {name: torch.stack([p, p.sin()]) for name, p in weights(layer).items()}
            xs = x if in_dims[1] is None else torch.stack([x, -x])
            found.append(vmap(lambda p, x, layer=layer: functional_call(layer, p, (x,)), in_dims)(stacked, xs))
        torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_layers_and_weights_with_tangents(kind):
    dense, sparse, x = make(kind)
    dense.requires_grad_(False), sparse.requires_grad_(False)
    torch.testing.assert_close(dual(sparse, x), dual(dense, x))
    expected = as_values(sparse, {name: p.sin() for name, p in weights(dense).items()})
    with forward_ad.dual_level():
        found = []
        for layer in (dense, sparse):
            duals = {n: forward_ad.make_dual(p.detach(), p.sin()) for n, p in layer.named_parameters()}
            y = functional_call(layer, duals, (forward_ad.make_dual(x, x.cos()),))
            found.append(forward_ad.unpack_dual(y).tangent)
        torch.testing.assert_close(found[1], found[0])
    assert expected["values"].shape == sparse.values.shape


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_epilogue(activation):
    act = getattr(nn.functional, activation)
    dense, sparse, x = make("linear")
    addend = torch.randn(3, 4, dtype=torch.float64)
    arguments = sparse.values.detach(), *sparse.pattern_tensors()
    for t in (jacfwd, jacrev):
        expected = t(lambda x: act(dense(x) + addend))(x)
        found = t(lambda x: csr_spmm(*arguments, x, True, sparse.bias, addend, activation))(x)
        torch.testing.assert_close(found, expected)
        found = t(lambda x: csr_spmm(*arguments, x.t(), False, sparse.bias, addend.t(), activation).t())(x)
        torch.testing.assert_close(found, expected)
    dense, sparse, x = make("convolution")
    addend = torch.randn(2, 6, 5, 3, dtype=torch.float64)
    arguments = sparse.values.detach(), *sparse.pattern_tensors(), sparse.bias, (3, 3), (1, 1), (1, 1), (1, 1), 2
    expected = jacfwd(lambda x: act(dense(x) + addend))(x)
    torch.testing.assert_close(jacfwd(lambda x: sparse_conv2d(x, *arguments, addend, activation))(x), expected)


@pytest.mark.parametrize("name", ["jvp", "grad", "vmap"])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_inside_torch_compile(kind, name):
    dense, sparse, x = make(kind)
    expected = OF_INPUTS[name](dense, x)
    compiled = torch.compile(lambda x: OF_INPUTS[name](sparse, x), backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    torch.testing.assert_close(OF_INPUTS[name](sparse, x), expected)


def test_names_what_does_not_fit():
    _, sparse, x = make("linear")
    with pytest.raises(NotImplementedError, match=r"csr_spmm: torch\.func\.functionalize"):
        grad(lambda x: torch.func.functionalize(sparse)(x).sum())(x)
    arguments = sparse.values.detach(), *sparse.pattern_tensors(), x, True
    with pytest.raises(ValueError, match=r"csr_spmm: bias is \(3,\), expected \(4,\)"):
        vmap(lambda b: csr_spmm(*arguments, b))(torch.ones(2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"csr_spmm: addend is \(4,\), expected \(3, 4\)"):
        vmap(lambda a: csr_spmm(*arguments, None, a))(torch.ones(2, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"activation is 'tanh'"):
        vmap(lambda x: csr_spmm(*arguments[:-2], x, True, None, None, "tanh"))(x[None])
