"""Everybody who computes y = x W' + b: dense in each form of PyTorch, torch.sparse, and libraries where installed.

`forward` and `training` return the functions to time by name, and why the others are missing.
The name of a contender says its kind: "dense ...", "sparse_ops ...", anything else is another sparse library.
"""

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from sparse_ops.layouts import batch_last
from sparse_ops.nn import SparseLinear

Run = Callable[[], Any]
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Contenders:
    """Functions by name; one that cannot be made or run is left out, with the reason."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.skipped: dict[str, str] = {}

    def add(self, name: str, make: Callable[[], Run]) -> None:
        """Make the contender and run it once."""
        try:
            run = make()
            run()
        except Exception as error:  # whatever a foreign library raises: the others are still measured
            message = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.skipped[name] = f"{type(error).__name__}: {message[:160]}"
        else:
            self.runs[name] = run


def prepacked(x: Tensor, weight: Tensor, bias: Tensor) -> Run:
    """oneDNN's product with the weight in its own blocked form, packed for this batch: what freezing a graph gives."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, x.shape[0])
    return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def compiled(function: Callable[..., Any], *args: Any) -> Run:
    """torch.compile of function(*args)."""
    ready = torch.compile(function, dynamic=False)
    return lambda: ready(*args)


def _scipy(x: Tensor, weight: Tensor, bias: Tensor) -> Run:
    sparse = importlib.import_module("scipy.sparse")
    matrix, rows, shift = sparse.csr_matrix(weight.numpy()), x.numpy(), bias.numpy()
    return lambda: torch.from_numpy((matrix @ rows.T).T + shift)


def _onnx(x: Tensor, weight: Tensor, bias: Tensor) -> Run:
    onnx, onnxruntime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    held = [onnx.numpy_helper.from_array(t.numpy(), name) for name, t in (("w", weight), ("b", bias))]
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    ends = [
        [helper.make_tensor_value_info(n, kind, list(s))] for n, s in (("x", x.shape), ("y", (len(x), len(weight))))
    ]
    model = helper.make_model(helper.make_graph([node], "linear", *ends, held), ir_version=10)
    model.opset_import[0].version = 21
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"x": x.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def _module(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight), layer.bias.copy_(bias)
    return layer


def _sparseprop(weight: Tensor, bias: Tensor) -> nn.Module:
    layer: nn.Module = importlib.import_module("sparseprop.modules").SparseLinear.from_dense(_module(weight, bias))
    return layer


def _sparselab(weight: Tensor, bias: Tensor) -> nn.Module:
    library, layout = importlib.import_module("sparselab"), importlib.import_module("sparselab.layout")
    layer: nn.Module = library.SparseLinear(weight.shape[1], weight.shape[0], sparsity=0.5)
    layer._csr = layout.from_dense(weight)  # the layer draws its own mask: this is how its __init__ sets one
    layer._values = nn.Parameter(torch.from_numpy(layer._csr.values))
    layer.bias = nn.Parameter(bias)
    return layer


def _untracked(layer: nn.Module, x: Tensor) -> Run:
    layer.requires_grad_(False)
    return lambda: layer(x)


def forward(weight: Tensor, x: Tensor, bias: Tensor, compile_dense: bool = True) -> Contenders:
    """y alone, to be run in inference mode; weight, x and bias are float32 and made half where a name says so."""
    found = Contenders()
    for name, dtype in {"float32": torch.float32, **HALVES}.items():
        own = x.to(dtype), weight.to(dtype), bias.to(dtype)
        found.add(f"dense {name}", lambda own=own: functools.partial(linear, *own))
        found.add(f"dense {name} prepacked", functools.partial(prepacked, *own))
        if compile_dense and dtype != torch.float16:
            found.add(f"dense {name} compiled", functools.partial(compiled, linear, *own))
        layer = SparseLinear.from_dense(_module(weight, bias)).to(dtype).eval()
        found.add(f"sparse_ops {name}", lambda layer=layer, x=own[0]: functools.partial(layer, x))
        if len(x) > 1:
            last = batch_last(own[0])
            found.add(f"sparse_ops {name} batch-last", lambda layer=layer, x=last: functools.partial(layer, x))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        csr = weight.to_sparse_csr()
    found.add("torch CSR", lambda: lambda: torch.addmm(bias[:, None], csr, x.T).T)
    found.add("scipy CSR", lambda: _scipy(x, weight, bias))
    found.add("onnxruntime dense", lambda: _onnx(x, weight, bias))
    found.add("SparseProp", lambda: _untracked(_sparseprop(weight, bias), x))
    found.add("SparseLab", lambda: _untracked(_sparselab(weight, bias), x))
    return found


def training(weight: Tensor, x: Tensor, bias: Tensor, dy: Tensor, compile_dense: bool = True) -> Contenders:
    """y, then the gradients of x, of the live weights (dense contenders mask theirs) and of the bias, given dy."""
    found = Contenders()
    mask = weight != 0

    def grads(layer: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
        y = layer(x)
        return [y, *torch.autograd.grad(y, [x, *layer.parameters()], dy)]

    def dense(layer: nn.Module, x: Tensor, dy: Tensor, mask: Tensor, ready: Callable[..., Tensor]) -> list[Tensor]:
        y = ready(x)
        dx, dw, db = torch.autograd.grad(y, [x, layer.weight, layer.bias], dy)
        return [y, dx, dw.mul_(mask), db]

    def autocast(run: Run) -> Run:
        def ran() -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return run()

        return ran

    def leaf(dtype: torch.dtype) -> Tensor:
        return x.to(dtype, copy=True).requires_grad_()

    for name, dtype in {"float32": torch.float32, "bfloat16": torch.bfloat16}.items():
        layer, g = _module(weight, bias).to(dtype), dy.to(dtype)
        args = layer, leaf(dtype), g, mask.to(dtype)
        found.add(f"dense {name}", lambda args=args: functools.partial(dense, *args, args[0]))
        if compile_dense:
            ready = torch.compile(layer, dynamic=False)
            found.add(f"dense {name} compiled", lambda args=args, r=ready: functools.partial(dense, *args, r))
        sparse = SparseLinear.from_dense(_module(weight, bias)).to(dtype)
        found.add(f"sparse_ops {name}", functools.partial(functools.partial, grads, sparse, leaf(dtype), g))
    half = dy.bfloat16()
    args = _module(weight, bias), leaf(torch.float32), half, mask.float()
    found.add("dense bfloat16 autocast", lambda: autocast(functools.partial(dense, *args, args[0])))
    sparse = SparseLinear.from_dense(_module(weight, bias))
    found.add("sparse_ops bfloat16 autocast", lambda: autocast(functools.partial(grads, sparse, args[1], half)))
    found.add("SparseProp", lambda: functools.partial(grads, _sparseprop(weight, bias), leaf(torch.float32), dy))
    found.add("SparseLab", lambda: functools.partial(grads, _sparselab(weight, bias), leaf(torch.float32), dy))
    return found
