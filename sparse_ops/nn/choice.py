"""Which of a model's layers run sparse: by measurement, threshold, or all; and the table that says why."""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from sparse_ops.nn import timing
from sparse_ops.nn.timing import Times

# A layer becomes sparse only where it is this much faster: close to 1 the choice would change from run to run, and with
# it what is saved.
LEAST_GAIN = 1.1
# Below this share of zeros the values and their 32-bit columns take more memory than the dense weight.
LEAST_SPARSITY = 0.5
# The sparsity from which a layer is expected to be faster sparse; used where there is no example to measure with.
EXPECTED_SPARSITY = {nn.Linear: 0.8, nn.Conv2d: 0.9}


@dataclass(frozen=True)
class LayerChoice:
    """One layer: times in milliseconds of one pass over all its inputs, None where nothing was measured."""

    name: str
    kind: str
    shape: tuple[int, ...]
    sparsity: float
    dense_ms: float | None
    sparse_ms: float | None
    sparse: bool
    reason: str


@dataclass(frozen=True)
class SparsifyTable:
    """The layers that `sparsify` looked at, in the model's order; print it."""

    layers: tuple[LayerChoice, ...]

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {"layers": [asdict(layer) for layer in self.layers]}

    def __str__(self) -> str:
        head = ("layer", "shape", "sparsity", "dense ms", "sparse ms", "decision")
        rows = [
            (
                layer.name or "(model)",
                f"{layer.kind} {' x '.join(map(str, layer.shape))}",
                f"{layer.sparsity:.2%}",
                "" if layer.dense_ms is None else f"{layer.dense_ms:.4f}",
                "" if layer.sparse_ms is None else f"{layer.sparse_ms:.4f}",
                f"{'sparse' if layer.sparse else 'dense'}: {layer.reason}",
            )
            for layer in self.layers
        ]
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        right = (2, 3, 4)
        return "\n".join(
            "  ".join(
                text.rjust(width) if i in right else text.ljust(width)
                for i, (text, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in [head, *rows]
        )


@dataclass(frozen=True)
class LayerInput:
    """What one call brings to a layer; equal calls are measured once."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    channels_last: bool
    autocast: torch.dtype | None

    @classmethod
    def of(cls, x: Tensor) -> "LayerInput":
        """The description of a tensor and of the autocast state."""
        kind = x.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        return cls(tuple(x.shape), x.dtype, x.device, last, autocast)

    def random(self, channels_last: bool) -> Tensor:
        """Normal numbers in this shape."""
        x = torch.randn(self.shape, device=self.device).to(self.dtype)
        return x.to(memory_format=torch.channels_last) if channels_last and x.dim() == 4 else x


_switch, _inside, _enabled = threading.Lock(), 0, True


@contextmanager
def layer_by_layer() -> Iterator[None]:
    """Torch's transformers call their layers: hooks keep them off the fused kernel, but not off its nested tensors.

    The switch is the process's; the last thread that leaves puts it back.
    """
    global _inside, _enabled
    with _switch:
        if _inside == 0:
            _enabled = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
        _inside += 1
    try:
        yield
    finally:
        with _switch:
            _inside -= 1
            if _inside == 0:
                torch.backends.mha.set_fastpath_enabled(_enabled)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and each of its modules back in its own afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def record_inputs(model: nn.Module, layers: Sequence[nn.Module], examples: Sequence[Any]) -> list[set[LayerInput]]:
    """For each layer the inputs that the examples bring to it, in evaluation mode and without gradients."""
    found: list[set[LayerInput]] = [set() for _ in layers]

    def hook(seen: set[LayerInput]) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs.get("input")
            if isinstance(x, Tensor):  # the layer itself complains about anything else
                seen.add(LayerInput.of(x))

        return note

    pairs = zip(layers, found, strict=True)
    handles = [layer.register_forward_pre_hook(hook(seen), with_kwargs=True) for layer, seen in pairs]
    try:
        with evaluating(model), layer_by_layer(), torch.no_grad():
            for i, example in enumerate(examples):
                _call(model, i, example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def call(model: nn.Module, example: Any) -> None:
    """Call the model with a tensor, a tuple of arguments or a dict of keyword arguments."""
    if isinstance(example, dict):
        model(**example)
    else:
        model(*(example if isinstance(example, tuple) else (example,)))


def has_hooks(model: nn.Module) -> bool:
    """Whether a call of the model calls somebody's hooks; those of torch.nn.utils.prune only mask weights."""
    return any(
        not isinstance(hook, BasePruningMethod)
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    )


def _call(model: nn.Module, i: int, example: Any) -> None:
    """Call the model with an example; its error, chained, under a sentence that says which example it was."""
    try:
        call(model, example)
    except Exception as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        what = f"a tensor of shape {tuple(example.shape)}" if isinstance(example, Tensor) else type(example).__name__
        reason = f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]}"
        raise kind(f"sparsify: the model failed on example {i} ({what}): {reason}") from error


def measure(dense: nn.Module, sparse: nn.Module, inputs: set[LayerInput]) -> Times:
    """Of (dense, sparse) in inference over all inputs; a dense convolution in the better memory format."""
    autocast = next(iter(inputs)).autocast
    device = next(iter(inputs)).device
    with torch.random.fork_rng(devices=[]):  # the user's numbers go on as if nothing had been
        given = [i.random(i.channels_last) for i in inputs]

    def all_of(layer: nn.Module, xs: list[Tensor]) -> Callable[[], Any]:
        return lambda: [layer(x) for x in xs]

    contenders = [all_of(sparse, given), all_of(dense, given)]
    if isinstance(dense, nn.Conv2d):
        for last in (False, True):
            form = torch.channels_last if last else torch.contiguous_format
            layer = type(dense).__new__(type(dense))
            layer.__dict__ = dense.__dict__ | {"_parameters": dict(dense._parameters)}
            layer._parameters["weight"] = nn.Parameter(dense.weight.detach().to(memory_format=form), False)
            own = [x.contiguous(memory_format=form) if x.dim() == 4 else x for x in given]
            contenders.append(all_of(layer, own))
    with torch.inference_mode(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        times = timing.compare(contenders, device)
    sparse_ms, *dense_ms = times.ms
    return dataclasses.replace(times, ms=(min(dense_ms), sparse_ms))


def judge(times: Times) -> tuple[bool, str]:
    """Whether a layer with these (dense, sparse) times becomes sparse, and why."""
    dense_ms, sparse_ms = times.ms
    ratio = dense_ms / sparse_ms
    sparse = ratio >= LEAST_GAIN
    reason = f"{'' if sparse else 'sparse is '}{ratio:.2f} times as fast"
    if 1 <= ratio < LEAST_GAIN:
        reason += f", less than {LEAST_GAIN}"
    if times.busy:
        reason += f" (the machine was busy; {times.threads} thread{'s' if times.threads > 1 else ''})"
    return sparse, reason
