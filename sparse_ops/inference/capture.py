"""A model as a graph of functional ATen ops, captured with an example by torch.export."""

import copy
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sparse_ops.inference import attention
from sparse_ops.inference.signature import Parameters, describe
from sparse_ops.nn import choice, swap

WHAT = "optimize_for_inference"
# torch.export keeps its state in globals: two at once fail, and leave the process unable to export.
ONE_AT_A_TIME = threading.RLock()
_aten = torch.ops.aten
# What does nothing to a value in a functional graph of a network in evaluation mode.
_NOTHING = (_aten.clone.default, _aten.alias.default, _aten.detach.default, _aten.lift_fresh_copy.default)


_SIZE = r"L(\[[^\]]+\])+\.size\(\)\[0\]"
_EQUAL = re.compile(f"{_SIZE} == {_SIZE}")


def arguments(example: Any, model: nn.Module | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) of an example: a tensor, a tuple of arguments, or keyword arguments, in the model's order."""
    if isinstance(example, dict):
        if strange := [key for key in example if not isinstance(key, str)]:
            raise TypeError(f"{WHAT}: the example has the key {strange[0]!r}, expected names of arguments")
        return (), dict(example) if model is None else Parameters.of(model).sort(example)
    if isinstance(example, tuple):
        return example, {}
    if not isinstance(example, Tensor):
        raise TypeError(
            f"{WHAT}: the example is {_kind(example)}, expected a tensor, a tuple of arguments or a dict of keyword "
            "arguments"
        )
    return (example,), {}


def _kind(example: Any) -> str:
    return "a list" if isinstance(example, list) else f"{describe(example)}, without a tensor"


def capture(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.GraphModule:
    """The model in evaluation mode as a GraphModule that is called as the model is, its weights shared with the model.

    The first dimension of the example's tensors stays free where all of them agree on it (at 2 or more) and the model's
    code does not depend on it: meta["least_batch"] is then the smallest size that gives what the model gives, None
    otherwise. Other sizes are those of the example. Ops are functional; what does nothing (dropout) is gone. Raises
    ValueError or TypeError that names the reason where the model fails on the example or cannot be captured.
    """
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not tensors:
        raise TypeError(f"{WHAT}: the example is without a tensor, expected what the model is called with")
    if any(t.numel() == 0 for t in tensors):
        empty = next(t for t in tensors if t.numel() == 0)
        raise ValueError(
            f"{WHAT}: a tensor of the example is empty, of shape {tuple(empty.shape)}; take one as large as calls have"
        )
    if any(isinstance(module, swap.SparseModule) for module in model.modules()):
        model = swap.densify(model)
    batch = {t.shape[0] if t.dim() else 0 for t in tensors}
    free = len(batch) == 1 and min(batch) > 1
    with quiet():
        try:
            program = _export(model, args, kwargs, free)
        except Exception:
            if not free:
                raise
            program, free = _export(model, args, kwargs, False), False
        if free and not _any_batch(program):
            program, free = _export(model, args, kwargs, False), False
        graph = program.module()
        assert isinstance(graph, fx.GraphModule)
    _tidy(graph)
    graph.meta["least_batch"] = _least_batch(graph, model, args, kwargs, min(batch)) if free else None
    return graph


def _any_batch(program: torch.export.ExportedProgram) -> bool:
    """Whether the program holds for every first dimension from 2 on: in every input, no guard but their equality."""
    if any(_EQUAL.fullmatch(guard) is None for guard in getattr(program, "_guards_code", ())):
        return False
    inputs = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"}
    values = [n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder" and n.name in inputs]
    ranges = program.range_constraints.values()
    return all(isinstance(v.shape[0], torch.SymInt) for v in values if isinstance(v, Tensor)) and all(
        r.lower <= 2 and r.upper > 2**31 for r in ranges
    )


def _least_batch(
    graph: fx.GraphModule, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: int
) -> int | None:
    """The smallest batch for which the graph gives what the model gives: 1 or 2; None where another one differs.

    torch.export takes a free dimension to be 2 or more, and Python code may branch on 1, broadcasting too.
    """

    def agree(n: int) -> bool:
        def resize(t: Tensor) -> Tensor:
            return torch.cat([t, t[:1]])[:n] if n > batch else t[:n]

        a, k = pytree.tree_map_only(Tensor, resize, (args, kwargs))
        with choice.evaluating(model), torch.no_grad(), choice.layer_by_layer():
            try:
                wanted = pytree.tree_leaves(model(*a, **k))
                found = pytree.tree_leaves(graph(*a, **k))
            except Exception:
                return False
        return len(found) == len(wanted) and all(map(_close, found, wanted))

    if not agree(batch + 1):
        return None
    return 1 if agree(1) else 2


def _close(a: Any, b: Any) -> bool:
    """Whether two results of the same ops are equal but for the order of sums."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and bool(a == b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not b.is_floating_point():
        return torch.equal(a, b)
    scale = float(b[b.isfinite()].abs().max()) if b.isfinite().any() else 0.0
    rounding = 1e-3 if b.dtype in (torch.float32, torch.float64) else 0.1
    return torch.allclose(a, b, rtol=0, atol=rounding * scale, equal_nan=True)


def run_twice(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The model's result on the example. Raises where it fails, draws random numbers or changes its own buffers."""
    buffers = {name: (b, b.clone()) for name, b in model.named_buffers(remove_duplicate=False)}
    results = []
    with choice.evaluating(model), torch.no_grad(), choice.layer_by_layer():
        try:
            for _ in range(2):
                own_args, own_kwargs = cloned((args, kwargs))  # the model may change its input
                results.append(model(*own_args, **own_kwargs))
                if changed := _restore(model, buffers):
                    raise ValueError(
                        f"{WHAT}: the model changes its buffer {changed[0]!r} in forward; a network for inference has "
                        "no state of its own"
                    )
        except Exception as error:
            _restore(model, buffers)
            if str(error).startswith(WHAT):
                raise
            kind = TypeError if isinstance(error, TypeError) else ValueError
            first = (str(error).splitlines() or ["no reason given"])[0]
            raise kind(
                f"{WHAT}: {type(model).__name__} failed on the example: {type(error).__name__}: {first}"
            ) from error
    one, two = (pytree.tree_leaves(result) for result in results)
    if len(one) != len(two) or not all(map(_close, one, two)):
        raise ValueError(
            f"{WHAT}: the model gives different results for the same input in evaluation mode, as where it draws "
            "random numbers: there is nothing to compare the network with"
        )
    return results[0]


def cloned(value: Any) -> Any:
    """The same structure with copies of its tensors."""
    return pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), value)


def _restore(model: nn.Module, buffers: dict[str, tuple[Tensor, Tensor]]) -> list[str]:
    """Put buffers back; the names of those that had changed."""
    changed = []
    for name, (buffer, before) in buffers.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if module._buffers[leaf] is not buffer or not _equal(buffer, before):
            changed.append(name)
            buffer.copy_(before)
            module._buffers[leaf] = buffer
    return changed


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], free: bool
) -> torch.export.ExportedProgram:
    try:
        with choice.evaluating(model), choice.layer_by_layer(), attention.capturable(model), torch.no_grad():
            program = torch.export.export(
                model, args, kwargs, dynamic_shapes=shapes(args, kwargs) if free else None,
                strict=False,
            )  # fmt: skip
            return program.run_decompositions({})
    except Exception as error:
        first = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ValueError(
            f"{WHAT}: {type(model).__name__} cannot be captured by torch.export, as where its Python code depends on "
            f"values of tensors: {type(error).__name__}: {first}"
        ) from error


def shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """torch.export's dynamic_shapes: the first dimension of every tensor is free."""

    def dims(leaf: Any) -> Any:
        return {0: torch.export.Dim.AUTO} if isinstance(leaf, Tensor) else None

    free, named = pytree.tree_map(dims, (args, kwargs))
    return named if named else tuple(free)


def _tidy(graph: fx.GraphModule) -> None:
    """Without guards and ops that do nothing; views that any memory layout of their input allows."""
    for node in list(graph.graph.nodes):
        guard = node.op == "call_module" and node.target == "_guards_fn"
        if guard or node.target is _aten._assert_tensor_metadata.default:
            graph.graph.erase_node(node)
        elif node.target in _NOTHING and not node.kwargs and node.args[0].op != "placeholder":
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif node.target in (_aten.view.default, _aten._unsafe_view.default):
            node.target = _aten.reshape.default
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch says about its own code when graphs are made, copied and read, in warnings and in logs."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch.fx.experimental.symbolic_shapes")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.addFilter(_nothing)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False


def attribute(module: nn.Module, path: str) -> Any:
    """The tensor or module at a dotted path."""
    for name in path.split("."):
        module = getattr(module, name)
    return module


def copied_constants(graph: fx.GraphModule) -> None:
    """Give the graph tensors of its own in place of those that it shares with the model."""
    memo: dict[Any, Any] = {}
    for module in graph.modules():
        for table in (module._parameters, module._buffers):
            for key, tensor in table.items():
                if tensor is not None:
                    same = tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), str(tensor.device)
                    known: Any = same if tensor.numel() else id(tensor)  # one tensor for each use of a shared weight
                    if known not in memo:
                        memo[known] = copy.deepcopy(tensor.detach())
                    table[key] = memo[known] if table is module._buffers else nn.Parameter(memo[known], False)
