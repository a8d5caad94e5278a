"""export and load_exported: a network for inference as a torch.export file that carries its choices."""

import errno
import gc
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparse_ops import checks, replacing
from sparse_ops._version import __version__
from sparse_ops.inference import capture, fuse, layout, machine, optimize
from sparse_ops.inference.given import Given
from sparse_ops.inference.network import InferenceNetwork, InferenceReport, LayerRow
from sparse_ops.inference.signature import Parameters, Signature

ENTRY = "sparse_ops.json"  # the file inside the archive that holds choices and the machine
VERSION = 2
_aten = torch.ops.aten


def export(model: nn.Module, example: Any, path: str | os.PathLike[str], *, dtype: str = "float32") -> InferenceNetwork:
    """Write the network for inference to `path` (.pt2), beside it first and then renamed; returns that network.

    model: any that `optimize_for_inference` takes, or what it returned (dtype is that network's own then). Another
    process runs the file with `import sparse_ops` and `load_exported(path)`, or `torch.export.load(path).module()`,
    without the model's code. The file holds weights, forms and layouts, and what they were measured on: instruction
    set, threads, batch. The example's numbers are not in it. A file holds a graph: where the model itself is quicker
    than one ("given" in the report), what is written and returned is its quickest graph.
    """
    checks.path("export(model, example, path)", path)
    checks.module("export(model, example, path)", model)
    path = Path(path)
    if path.suffix != ".pt2":
        raise ValueError(f"export: path is {os.fspath(path)!r}, expected a name that ends in .pt2")
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"export: there is no folder {path.parent} for the file", os.fspath(path))
    if path.is_dir():
        raise IsADirectoryError(f"export: {path} is a folder, expected the name of a file")
    if isinstance(model, InferenceNetwork):
        result = model
        if isinstance(model.graph, Given):
            result = optimize.optimized(model.graph.model, example, model.report().dtype, or_given=False)
    else:
        result = optimize.optimized(model, example, optimize.checked(model, dtype), or_given=False)
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
    written = io.BytesIO()  # torch's writer ends the process where a disk is full
    with capture.quiet():
        torch.export.save(program, written, extra_files={ENTRY: json.dumps(header)})
    with replacing.replaced("export", path) as beside:
        beside.write_bytes(written.getbuffer())
    return result


def load_exported(path: str | os.PathLike[str], *, verbose: bool = False) -> InferenceNetwork:
    """The network of a file of `export`, with torch's threads of now.

    Where the instruction set or the number of threads differ from those of the file, forms and layouts are measured
    again, here, on random input of the example's shapes. Raises ValueError that names the file where it is damaged or
    was not written by `export`.
    """
    checks.path("load_exported(path)", path)
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    program, graph, header = _read(path)
    try:
        report, parameters = header["report"], header["parameters"]
        _lift(graph, {row["name"]: row["choice"] for row in report["layers"]})
        rows = tuple(LayerRow(**row | {"shape": tuple(row["shape"])}) for row in report["layers"])
        found = InferenceReport(**report | {"layers": rows})
        args, kwargs = _random(program)
        parameters = Parameters(**parameters | {"order": tuple(parameters["order"])})
        signature = Signature(args, kwargs, parameters, header["least_batch"])
        result = InferenceNetwork(graph, signature, found)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {ENTRY} in it does not fit its graph: {type(error).__name__}: {error}") from error
    if machine.differs(found.machine):
        with torch.no_grad():
            wanted = result(*args, **kwargs)
        _unlay(graph)
        with torch.random.fork_rng(devices=[]):
            result = optimize.build(graph, signature, args, kwargs, found.dtype, wanted, found.dense_bytes)
        del program, graph
        gc.collect()  # as in optimize_for_inference
    if verbose:
        print(result.report())
    return result


def _read(path: Path) -> tuple[torch.export.ExportedProgram, fx.GraphModule, dict[str, Any]]:
    """What a file holds: the program, its graph and the header. Raises ValueError that names the file.

    torch's own reader logs a traceback where a file is no archive, and does not look at checksums.
    """
    extra = {ENTRY: ""}
    try:
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")
        with capture.ONE_AT_A_TIME, capture.quiet(), path.open("rb") as file:
            program = torch.export.load(file, extra_files=extra)
            graph = program.module()
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        first = "parts of one are missing" if "warnings above" in first else first  # which are torch's log
        raise ValueError(f"{path}: it is damaged, or no file of torch.export: {first}") from error
    if not extra[ENTRY]:
        raise ValueError(f"{path}: a file of torch.export, but not of sparse_ops.export; torch.export.load reads it")
    try:
        header = json.loads(extra[ENTRY])
    except ValueError as error:
        raise ValueError(f"{path}: {ENTRY} in it is no JSON: {error}") from error
    version = header.get("version") if isinstance(header, dict) else None
    if version != VERSION:
        raise ValueError(f"{path}: its version is {version!r}, this sparse_ops reads {VERSION}")
    assert isinstance(graph, fx.GraphModule)
    capture._tidy(graph)
    return program, graph, header


def _program(result: InferenceNetwork, args: Any, kwargs: Any) -> tuple[torch.export.ExportedProgram, bool]:
    """The network's graph as torch.export saves it, and whether its first dimension is free."""
    free = capture.shapes(args, kwargs)
    with capture.ONE_AT_A_TIME, capture.quiet(), torch.no_grad():
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


# What `layout` makes of a pool and of a mean over pixels: (target, order of a permutation) before and behind it.
Links = Sequence[tuple[Any, tuple[int, ...] | None]]
_FLAT = (_aten.reshape.default, None)
_POOL: Links = ((_aten.permute.default, (0, 3, 1, 2)), _FLAT, (_aten.permute.default, (2, 3, 1, 0)))
_POOLED: Links = ((_aten.permute.default, (0, 2, 3, 1)), _FLAT, (_aten.permute.default, (3, 2, 0, 1)))
_MEAN: Links = ((_aten.flatten.using_ints, None), (_aten.permute.default, (2, 3, 1, 0)))
_MEANT: Links = ((_aten.t.default, None), (_aten.contiguous.default, None))


def _unlay(graph: fx.GraphModule) -> None:
    """The graph without conversions between layouts; pools and means over pixels as torch calls them."""
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.sparse_ops.to_layout.default:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
            continue
        rest: tuple[Any, ...] = node.args[1:]
        if node.target in layout.POOLS:
            before, behind = _POOL, _POOLED
        elif node.target is _aten.mean.dim:
            before, behind, rest = _MEAN, _MEANT, ([2, 3],)
        else:
            continue
        source, last = _chain(node, before, lambda n: n.args[:1]), _chain(node, behind, lambda n: n.users)
        if source is None or last is None:
            continue
        with graph.graph.inserting_before(last):
            plain = graph.graph.call_function(node.target, (source.args[0], *rest))
        last.replace_all_uses_with(plain)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _chain(node: fx.Node, links: Links, step: Callable[[fx.Node], Iterable[Any]]) -> fx.Node | None:
    """The node at the end of a chain of single steps from `node` along the links; None where there is no such chain."""
    for target, order in links:
        found = list(step(node))
        if len(found) != 1 or not isinstance(found[0], fx.Node) or found[0].target is not target:
            return None
        node = found[0]
        if order is not None and tuple(node.args[1]) != order:  # type: ignore[arg-type]
            return None
    return node
