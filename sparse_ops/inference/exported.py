"""export and load_exported: a network for inference as a torch.export file that carries its choices."""

import errno
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparse_ops._version import __version__
from sparse_ops.inference import capture, fuse, layout, machine, optimize
from sparse_ops.inference.network import InferenceNetwork, InferenceReport, LayerRow
from sparse_ops.inference.signature import Parameters, Signature

ENTRY = "sparse_ops.json"  # the file inside the archive that holds choices and the machine
VERSION = 2


def export(model: nn.Module, example: Any, path: str | os.PathLike[str], *, dtype: str = "float32") -> InferenceNetwork:
    """Write the network for inference to `path` (.pt2), beside it first and then renamed; returns that network.

    model: any that `optimize_for_inference` takes, or what it returned (dtype is that network's own then). Another
    process runs the file with `import sparse_ops` and `load_exported(path)`, or `torch.export.load(path).module()`,
    without the model's code. The file holds weights, forms and layouts, and what they were measured on: instruction
    set, threads, batch. The example's numbers are not in it.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ValueError(f"export: path is {os.fspath(path)!r}, expected a name that ends in .pt2")
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"export: there is no folder {path.parent} for the file", os.fspath(path))
    if path.is_dir():
        raise IsADirectoryError(f"export: {path} is a folder, expected the name of a file")
    if isinstance(model, InferenceNetwork):
        result = model
    else:
        result = optimize.optimize_for_inference(model, example, dtype=dtype)
    signature = result.signature
    args, kwargs = signature.bind(*capture.arguments(example))  # refuses an example of other shapes, with a sentence
    args, kwargs = pytree.tree_map_only(Tensor, torch.zeros_like, (args, kwargs))
    program, free = _program(result, args, kwargs)
    report = result.report()
    header = {
        "version": VERSION,
        "sparse_ops": __version__,
        "torch": torch.__version__,
        "least_batch": signature.least_batch if free else None,
        "inputs": [[list(t.shape), str(t.dtype)] for t in signature.tensors()],
        "parameters": asdict(signature.parameters),
        "report": report.to_dict(),
    }
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp.pt2")
    try:
        with beside.open("wb") as file:
            torch.export.save(program, file, extra_files={ENTRY: json.dumps(header)})
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return result


def load_exported(path: str | os.PathLike[str], *, verbose: bool = False) -> InferenceNetwork:
    """The network of a file of `export`, with torch's threads of now.

    Where the instruction set or the number of threads differ from those of the file, forms and layouts are measured
    again, here, on random input of the example's shapes. Raises ValueError that names the file where it is damaged or
    was not written by `export`.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    extra = {ENTRY: ""}
    try:
        with capture.quiet(), path.open("rb") as file:
            program = torch.export.load(file, extra_files=extra)
            graph = program.module()
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: it is damaged, or no file of torch.export: {first}") from error
    if not extra[ENTRY]:
        raise ValueError(f"{path}: a file of torch.export, but not of sparse_ops.export; torch.export.load reads it")
    header = json.loads(extra[ENTRY])
    if header.get("version") != VERSION:
        raise ValueError(f"{path}: its version is {header.get('version')!r}, this sparse_ops reads {VERSION}")
    assert isinstance(graph, fx.GraphModule)
    capture._tidy(graph)
    report = header["report"]
    _lift(graph, {row["name"]: row["choice"] for row in report["layers"]})
    rows = tuple(LayerRow(**row | {"shape": tuple(row["shape"])}) for row in report["layers"])
    found = InferenceReport(**report | {"layers": rows})
    args, kwargs = _random(program)
    parameters = header["parameters"]
    parameters = Parameters(**parameters | {"order": tuple(parameters["order"])})
    signature = Signature(args, kwargs, parameters, header["least_batch"])
    result = InferenceNetwork(graph, signature, found)
    if machine.differs(found.machine):
        with torch.no_grad():
            wanted = result(*args, **kwargs)
        _unlay(graph)
        result = optimize.build(graph, signature, args, kwargs, found.dtype, wanted, found.dense_bytes)
    if verbose:
        print(result.report())
    return result


def _program(result: InferenceNetwork, args: Any, kwargs: Any) -> tuple[torch.export.ExportedProgram, bool]:
    """The network's graph as torch.export saves it, and whether its first dimension is free."""
    free = capture.shapes(args, kwargs)
    with capture.quiet(), torch.no_grad():
        for shapes in [free, None] if result.free_batch else [None]:
            try:
                program = torch.export.export(result.graph, args, kwargs, dynamic_shapes=shapes, strict=False)
            except Exception:
                if shapes is None:
                    raise
                continue
            small = pytree.tree_map_only(
                Tensor, lambda t: t.new_zeros(1).expand(t.shape) if t.dim() else t, (args, kwargs)
            )
            program.example_inputs = small  # its numbers would be saved too: ten megabytes for 16 images
            return program, shapes is not None
    raise AssertionError


def _random(program: torch.export.ExportedProgram) -> tuple[Any, Any]:
    """Arguments of the example's structure: random numbers, zeros where integers stand."""
    leaves, spec = pytree.tree_flatten(program.example_inputs)
    fresh = [
        leaf if not isinstance(leaf, Tensor) else torch.randn(leaf.shape).to(leaf.dtype) if leaf.is_floating_point()
        else torch.zeros_like(leaf)
        for leaf in leaves
    ]  # fmt: skip
    args, kwargs = pytree.tree_unflatten(fresh, spec)
    return args, kwargs


def _lift(graph: fx.GraphModule, choices: dict[str, str]) -> None:
    """Calls of the fused ops become layers again, forms as they are."""
    fuse.lift(graph)
    for (_, layer), choice in zip(fuse.layer_nodes(graph), choices.values(), strict=True):
        layer.choice = choice


def _unlay(graph: fx.GraphModule) -> None:
    """The graph without conversions between layouts, pools as torch calls them."""
    aten, nodes = torch.ops.aten, list(graph.graph.nodes)
    for node in nodes:
        if node.target is torch.ops.sparse_ops.to_layout.default:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif node.target in layout.POOLS:
            source, users = node.args[0], list(node.users)
            turned = all(n.target is aten.transpose.int and n.args[1:] == (0, 1) for n in (source, *users))
            if turned and users:
                node.replace_input_with(source, source.args[0])
                for user in users:
                    user.replace_all_uses_with(node)
                    graph.graph.erase_node(user)
    graph.graph.eliminate_dead_code()
    graph.recompile()
