"""Whole networks for inference: optimize_for_inference against every dense form of the same network.

    python -m bench network --model resnet50 --threads 2 --batch 16 --json bench/results/network.jsonl
    python -m bench network --model resnet50 --mask erk --sparsity 0.98 --batch 16 --json FILE
    python -m bench network --model resnet18 --mask trained --weights model.safetensors --json FILE
    python -m bench network --plot docs/kernels/network.svg --json FILE

Dense contenders, with the zeros in place: float32 eager, channels_last, torch.compile (with its freezing, which packs
weights) and torch.jit's optimize_for_inference; bfloat16 eager and channels_last, torch.compile; onnxruntime where
installed. All of a line are timed in turn in one process; each one's output is compared with the float64 network's.
--mask even: all convolutions and linear layers but the first convolution have the same share of zeros; erk: the same
total over the same layers, spread by ERK. --malloc tuned: blocks of any size stay in the process when they are freed,
as MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ would have it; then dense contenders do not pay for fresh pages.
"""

import argparse
import copy
import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sparse_ops
from bench import speedups
from bench.common import DTYPES, dense_dtypes, measure, parser, report, skip, start
from bench.rivals import Contenders, Run
from sparse_ops import masks
from sparse_ops.inference import optimize_for_inference
from sparse_ops.train import networks

SPARSITIES = [0.8, 0.9, 0.95, 0.98, 0.99]
# Of the largest output: what a rounding of every layer's weights and outputs to 24 or to 8 bits may add up to.
TOLERANCES = {"float32": 1e-4, "half": 0.1}


def minilm() -> nn.Module:
    """The encoder of MiniLM-L6: six layers of width 384, 12 heads, a feed-forward part of 1536, GELU."""
    layer = nn.TransformerEncoderLayer(384, 12, 1536, 0.0, "gelu", batch_first=True)
    return nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)


MODELS = {
    "resnet50": (lambda: networks.build("resnet50", (3, 224, 224), 1000), (3, 224, 224)),
    "resnet18": (lambda: networks.build("resnet18", (3, 224, 224), 1000), (3, 224, 224)),
    "resnet18-cifar": (lambda: networks.build("resnet18", (3, 32, 32), 10, stride=1), (3, 32, 32)),
    "minilm": (minilm, (128, 384)),
    "mlp": (lambda: networks.build("mlp", (1, 28, 28), 10, width=1024), (1, 28, 28)),
}


def pruned(name: str, sparsity: float, mask: str, weights: Path | None) -> nn.Module:
    """A network in evaluation mode with the zeros that the mask says, and norms that are not trivial."""
    torch.manual_seed(0)
    model = MODELS[name][0]().eval()
    if mask == "trained":
        return sparse_ops.load(weights, model).eval() if weights else model
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    prunable = [m.weight for m in layers if not (isinstance(m, nn.Conv2d) and m.weight.shape[1] <= 4)]
    prunable += [m.in_proj_weight for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    chosen = masks.magnitude_mask(prunable, sparsity, scope="erk" if mask == "erk" else "uniform")
    with torch.no_grad():
        for weight, packed in zip(prunable, chosen, strict=True):
            weight *= packed.to_dense()
            weight /= max(1e-3, 1 - packed.zeros / weight.numel()) ** 0.5  # outputs keep their scale
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_(0, 0.1)
                norm.running_var.uniform_(0.5, 1.5)
    return model


def dense(model: nn.Module, x: Tensor, dtypes: list[str], compile_dense: bool) -> Contenders:
    """Every dense form of the network in these dtypes, and onnxruntime's in float32."""
    found = Contenders()
    images = x.dim() == 4
    for name in dtypes:
        dtype = DTYPES[name]
        for layout in ["", " channels_last"] if images else [""]:
            form = torch.channels_last if layout else torch.contiguous_format
            own = copy.deepcopy(model).to(dtype=dtype)
            own, given = own.to(memory_format=form) if images else own, x.to(dtype).contiguous(memory_format=form)
            found.add(f"dense {name}{layout}", lambda own=own, given=given: lambda: own(given))
            if images and not layout:
                continue
            if compile_dense:
                found.add(f"dense {name}{layout} compiled", lambda own=own, given=given: _compiled(own, given))
            found.add(f"dense {name}{layout} torch.jit", lambda own=own, given=given: _scripted(own, given))
    found.add("onnxruntime dense float32", lambda: _onnx(model, x))
    return found


def _compiled(model: nn.Module, x: Tensor) -> Run:
    import torch._inductor.config as config

    config.freezing = True  # weights become constants, which are packed for oneDNN
    ready = torch.compile(model, dynamic=False)
    return lambda: ready(x)


def _scripted(model: nn.Module, x: Tensor) -> Run:
    traced = torch.jit.trace(model, x, check_trace=False)
    ready = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
    return lambda: ready(x)


def _onnx(model: nn.Module, x: Tensor) -> Run:
    import io

    import onnxruntime

    file = io.BytesIO()
    torch.onnx.export(model, (x,), file, dynamo=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def compare(args: argparse.Namespace, sparsity: float, batch: int, threads: int) -> list[dict[str, Any]]:
    """Measure all contenders on one network; the records."""
    model = pruned(args.model, sparsity, args.mask, args.weights)
    if args.mask == "trained":
        sparsity = sparse_ops.sparsity_report(model).sparsity
        model = sparse_ops.densify(model)
    x = torch.randn(batch, *MODELS[args.model][1])
    where = {"shape": f"{args.model} batch {batch}", "mask": args.mask, "sparsity": sparsity, "threads": threads}
    where |= {"op": "network", "work": "inference", "malloc": args.malloc}
    torch._dynamo.reset()
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x.double())
        found = dense(model, x, args.dense_dtype, not args.no_compile)
        ours = {}
        for dtype in args.dtype:
            ours[dtype] = optimize_for_inference(model, x, dtype=dtype, verbose=args.layers)
            found.add(f"sparse_ops {dtype}", lambda network=ours[dtype]: lambda: network(x))
    for name, reason in found.skipped.items():
        skip(args, reason, contender=name, **where)
    records = []
    with torch.inference_mode():
        errors = {name: _error(run(), expected) for name, run in found.runs.items()}
        times = measure(found.runs, args)
    for name, time in times.items():
        allowed = next((t for t, most in TOLERANCES.items() if errors[name] <= most), None)
        if allowed is None:
            skip(args, f"wrong by {errors[name]:.1e}", contender=name, **where)
            continue
        kind = "dense" if "dense" in name else "ours"
        rest: dict[str, Any] = {"contender": name, "kind": kind, "tolerance": allowed, "error": errors[name]}
        rest["dtype"] = "bfloat16" if "bfloat16" in name else "float32"
        if kind == "ours":
            of_it = ours[rest["dtype"]].report()
            rest |= {"runs_as": of_it.chosen, "bytes_held": of_it.bytes, "dense_bytes": of_it.dense_bytes}
        records.append(report(args, **where, **rest, **time))
    return records


def _error(y: Tensor, expected: Tensor) -> float:
    return float((y.double() - expected).abs().max() / expected.abs().max())


def tune_malloc() -> None:
    """Let glibc keep freed blocks of any size: M_MMAP_THRESHOLD and M_TRIM_THRESHOLD."""
    libc = ctypes.CDLL(None)
    if not (libc.mallopt(-3, 2**30) and libc.mallopt(-1, 2**31 - 1)):
        raise SystemExit("network: --malloc tuned needs glibc")


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, several_threads=True)
    options.add_argument("--model", choices=MODELS, default="resnet50")
    options.add_argument("--sparsity", type=float, nargs="+", default=SPARSITIES)
    options.add_argument("--mask", choices=["even", "erk", "trained"], default="even")
    options.add_argument("--weights", type=Path, metavar="FILE", help="of sparse_ops.save, for --mask trained")
    options.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    options.add_argument("--dtype", choices=["float32", "bfloat16"], nargs="+", default=["float32", "bfloat16"])
    dense_dtypes(options)
    options.add_argument("--malloc", choices=["default", "tuned"], default="default")
    options.add_argument("--no-compile", action="store_true", help="leave out torch.compile, a minute a line")
    options.add_argument("--layers", action="store_true", help="print what was chosen for each layer")
    options.add_argument("--plot", type=Path, metavar="FILE", help="draw the records of --json, measure nothing")
    args = start(options, argv)
    if args.plot is not None:
        if args.json is None:
            raise SystemExit("network: --plot needs --json FILE with the records to draw")
        of_networks = [r for r in speedups.read(args.json) if r["op"] == "network"]
        speedups.plot(of_networks, args.plot, "Networks over their best dense form")
        print(speedups.table(of_networks))
        return
    if args.mask == "trained" and args.weights is None:
        raise SystemExit("network: --mask trained needs --weights FILE")
    if args.malloc == "tuned":
        tune_malloc()
    records = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for batch in args.batch:
            for sparsity in args.sparsity if args.mask != "trained" else [0.0]:
                records += compare(args, sparsity, batch, threads)
    print(speedups.table(records))


if __name__ == "__main__":
    main()
