"""save, load, verify: models in safetensors files, sparse layers by their values and pattern, nothing executed."""

import contextlib
import errno
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from sparse_ops import checks, encodings, replacing
from sparse_ops.checks import FLOATS
from sparse_ops.encodings import Encoding, Form, Header, Kind, join
from sparse_ops.inference.network import InferenceNetwork
from sparse_ops.nn import parametrized, swap
from sparse_ops.nn.base import SparseModule, matrix_shape
from sparse_ops.planning import table


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the model's state_dict to `path`, beside it first and then renamed, so that no file is ever half written.

    A sparse layer is stored as <module>.values, <module>.row_offsets and <module>.columns; a dense tensor with many
    zeros is stored compressed and restored dense, without loss; a tensor that stands at several places is stored once;
    what torch.nn.utils.prune masks is stored as the product of its two halves, under the name that it has without.
    Needs the package safetensors. Raises ValueError for a state_dict that holds something else than tensors, and for a
    model whose weights a method still computes from thresholds (`finalize` or `sparse_ops.methods.bake` ends that).
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    _check_arguments("save(model, path)", model, path)
    if isinstance(model, InferenceNetwork):
        raise TypeError("save: model is a network for inference; sparse_ops.export(network, example, path) writes it")
    parametrized.refuse("save", model)
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"save: there is no folder {path.parent} for the file", os.fspath(path))
    if path.is_dir():
        raise IsADirectoryError(f"save: {path} is a folder, expected the name of a file in it")
    tensors, header = _encode(model)
    header.sha256 = encodings.digest(tensors, header)
    with replacing.replaced("save", path) as beside:
        try:
            save_file(tensors, beside, {encodings.ENTRY: header.dumps()})
        except SafetensorError as error:  # such as a full disk
            raise OSError(f"save: {path} cannot be written: {error}") from error


def load(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Fill `model` from a file of `save`, in place, and return it (a model that is a single layer may be replaced).

    Layers that are sparse in the file become sparse in the model, whatever they were, and the others dense; tensors are
    converted to the model's devices and, among floating dtypes, among integers, to its dtypes. Raises ValueError that
    names the file, the key and the value where the file is truncated, foreign, of another version, damaged (its sha256
    covers everything in it), or does not fit the model, which is then unchanged. Shapes are compared before anything of
    their size is allocated: a file takes memory in proportion to its own size and to the model's.
    """
    _check_arguments("load(path, model)", model, path)
    with _naming(path):
        tensors, header = _read(path)
        if (found := encodings.digest(tensors, header)) != header.sha256:
            raise ValueError(f"the hash of its contents is {found}, its header says {header.sha256}")
        stored = encodings.stored(tensors, header)
        forms = {key: form for item in stored for key, form in item.forms().items()}
        foreign = _foreign(model, forms)
        swaps = _swaps(model, header, foreign)
        masked = {
            key: halves
            for key, halves in _masked_by_torch(model).items()
            if key in forms and key.rpartition(".")[0] not in header.layers
        }
        for key, halves in masked.items():
            forms |= dict.fromkeys(halves, forms.pop(key))
        _check_fit(model, swaps, forms, foreign)
        state: dict[str, Tensor] = {}
        for item in stored:
            if item.shared in state and isinstance(item.encoding, Encoding):
                state[item.name] = state[item.shared]
            else:
                state |= item.decode()
        for key, halves in masked.items():
            weight = state.pop(key)
            state |= dict(zip(halves, (weight, (weight != 0).to(weight.dtype)), strict=True))
    model = swap.replace(model, swaps)
    model.load_state_dict(state)
    return model


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: the dense shape, how many elements are zero, NaN or infinite, the bytes that it takes."""

    name: str
    encoding: str
    shape: tuple[int, ...]
    dtype: str
    zeros: int
    non_finite: int
    bytes: int


@dataclass(frozen=True)
class FileReport:
    """What `verify` found; hash_ok says whether tensors and header are those that were saved."""

    path: str
    version: int
    hash_ok: bool
    tensors: tuple[StoredTensor, ...]
    bytes: int
    dense_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    def __str__(self) -> str:
        head = ("tensor", "stored", "shape", "dtype", "zeros", "bytes", "")
        rows = [
            (
                t.name,
                t.encoding,
                " x ".join(map(str, t.shape)) or "scalar",
                t.dtype,
                f"{t.zeros:,}",
                f"{t.bytes:,}",
                f"{t.non_finite:,} NOT FINITE" if t.non_finite else "",
            )
            for t in self.tensors
        ]
        ratio = self.dense_bytes / max(1, self.bytes)
        lines = [
            table(head, rows),
            "",
            f"{self.path}: format version {self.version}, {self.bytes:,} bytes; "
            f"dense tensors would take {self.dense_bytes:,}, {ratio:.1f} times as many",
        ]
        non_finite = sum(t.non_finite for t in self.tensors)
        but = f", but {non_finite:,} values are not finite" if non_finite else ""
        right = f"OK: the hash is right, the tensors are those that were saved{but}"
        lines.append(right if self.hash_ok else "DAMAGED: THE HASH IS WRONG, these are not the tensors that were saved")
        return "\n".join(lines)


def verify(path: str | os.PathLike[str]) -> FileReport:
    """Read a file of `save` and check every tensor in it, without a model.

    A wrong hash, which covers everything in the file, is reported (`hash_ok`); a file that is truncated, foreign, of
    another version or inconsistent raises ValueError that names the file and what is wrong. Nothing is made dense:
    memory is in proportion to the file (12 times its size measured), whatever shapes it states.
    """
    checks.path("verify(path)", path)
    rows, dense_bytes = [], 0
    with _naming(path):
        tensors, header = _read(path)
        hash_ok = encodings.digest(tensors, header) == header.sha256
        for item in encodings.stored(tensors, header):
            item.check()
            if item.shared is not None:
                continue
            n, values = math.prod(item.shape), _countable(item.values)
            zeros, non_finite = n - int(values.count_nonzero()), values.numel() - int(values.isfinite().sum())
            encoding, dtype = str(item.encoding or "dense"), str(item.values.dtype).removeprefix("torch.")
            size = sum(t.nbytes for t in item.parts.values())
            rows.append(StoredTensor(item.name, encoding, item.shape, dtype, zeros, non_finite, size))
            dense_bytes += n * item.values.element_size()
    return FileReport(str(path), header.version, hash_ok, tuple(rows), Path(path).stat().st_size, dense_bytes)


def _countable(t: Tensor) -> Tensor:
    """t in a dtype in which torch counts zeros: it does not in unsigned integers and 8-bit floats."""
    if t.is_floating_point():
        return t if t.dtype in FLOATS else t.float()
    signed = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
    return t.view(signed.get(t.dtype, t.dtype))


def _check_arguments(call: str, model: Any, path: Any) -> None:
    """TypeError that says which argument is what, as where the two are swapped."""
    checks.module(call, model)
    checks.path(call, path)


@contextlib.contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None
    except (RuntimeError, MemoryError, OverflowError) as error:  # torch's allocator says RuntimeError
        reason = (str(error).splitlines() or ["out of memory"])[0]
        raise ValueError(f"{os.fspath(path)}: what it holds cannot be made here: {reason}") from error


def _masked_by_torch(model: nn.Module) -> dict[str, tuple[str, str]]:
    """Key of each tensor that torch.nn.utils.prune masks -> the keys of its two halves in the state_dict."""
    return {
        join(name, hook._tensor_name): (
            join(name, f"{hook._tensor_name}_orig"),
            join(name, f"{hook._tensor_name}_mask"),
        )
        for name, module in model.named_modules(remove_duplicate=False)
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, BasePruningMethod)
    }


def _encode(model: nn.Module) -> tuple[dict[str, Tensor], Header]:
    """The tensors of a file and its header, still without the hash."""
    header = Header()
    structure: dict[str, tuple[SparseModule, str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, SparseModule):
            header.layers[name] = Kind(type(module).__name__), module.weight_shape
            structure |= {join(name, key): (module, key) for key in ("row_offsets", "columns", "values")}
    tensors: dict[str, Tensor] = {}
    first: dict[tuple[Any, ...], str] = {}
    state = model.state_dict()
    for key, halves in _masked_by_torch(model).items():
        state[key] = state.pop(halves[0]) * state.pop(halves[1])
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"save: {key!r} in the state_dict is {type(value).__name__}, expected a tensor")
        if value.layout != torch.strided:
            raise ValueError(f"save: {key!r} in the state_dict has layout {value.layout}, expected a strided tensor")
        place = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() and first.setdefault(place, key) != key:
            header.shared[key] = first[place]
            continue
        t = value.detach().cpu().contiguous()
        if key in structure:
            module, part = structure[key]
            columns = matrix_shape(module.weight_shape)[1]
            tensors[key] = encodings.narrow_columns(t, columns) if part == "columns" else t
        elif (smaller := encodings.compress(key, t)) is not None:
            header.compressed[key] = smaller[0], tuple(t.shape)
            tensors |= smaller[1]
        else:
            tensors[key] = t
    return tensors, header


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Header]:
    from safetensors import SafetensorError, safe_open

    if Path(path).is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not Path(path).is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    try:
        with safe_open(path, framework="pt") as file:
            header = Header.loads((file.metadata() or {}).get(encodings.ENTRY))
            return {key: file.get_tensor(key) for key in file.keys()}, header  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"it is truncated or not a safetensors file ({error})") from None


def _foreign(model: nn.Module, keys: Iterable[str]) -> str:
    """What an error says beside the first name that does not fit, where most layers are others than the model's."""
    theirs, ours = ({key.rpartition(".")[0] for key in found} for found in (keys, model.state_dict()))
    common = len(theirs & ours)
    if 2 * common >= max(len(theirs), len(ours)):
        return ""
    return f"; {common} of its {len(theirs)} layers are among the model's {len(ours)}: it belongs to another network"


def _swaps(model: nn.Module, header: Header, foreign: str) -> dict[nn.Module, nn.Module]:
    """The layers to exchange so that the model is sparse where the file is; nothing is changed yet."""
    modules = dict(model.named_modules(remove_duplicate=False))
    swaps: dict[nn.Module, nn.Module] = {}
    for name, (kind, shape) in header.layers.items():
        if name not in modules:
            raise ValueError(f"the sparse layer {name!r} is not in the model{foreign}")
        layer = modules[name]
        target = type(layer) if isinstance(layer, SparseModule) else swap.SPARSE_TYPES.get(type(layer))
        if target is None or target.__name__ != kind:
            raise ValueError(f"the layer {name!r} is {kind} in the file, {type(layer).__name__} in the model")
        own = layer.weight_shape if isinstance(layer, SparseModule) else tuple(layer.weight.shape)
        if own != shape:
            raise ValueError(f"the weight of {name!r} is {shape} in the file, {own} in the model")
        if not isinstance(layer, SparseModule):
            swaps[layer] = swap.empty_sparse(layer)
    for name, layer in modules.items():
        if isinstance(layer, SparseModule) and name not in header.layers:
            swaps[layer] = layer.to_dense()
    return swaps


def _check_fit(model: nn.Module, swaps: dict[nn.Module, nn.Module], forms: dict[str, Form], foreign: str) -> None:
    """Every key of the file has its place in the model with the same shape and kind of dtype, and the other way round.

    A sparse layer has any number of values and columns in the file.
    """
    expected = model.state_dict()
    for name, module in model.named_modules(remove_duplicate=False):
        if module in swaps:
            expected = {k: t for k, t in expected.items() if k.rpartition(".")[0] != name}
            expected |= {join(name, k): t for k, t in swaps[module].state_dict().items()}
    if missing := sorted(expected.keys() - forms.keys()):
        raise ValueError(f"{missing[0]!r} is missing ({len(missing)} such keys){foreign}")
    if unexpected := sorted(forms.keys() - expected.keys()):
        raise ValueError(f"{unexpected[0]!r} is not in the model ({len(unexpected)} such keys){foreign}")
    for key, t in expected.items():
        shape, dtype = forms[key]
        if not isinstance(t, Tensor):
            raise ValueError(f"{key!r} in the model's state_dict is {type(t).__name__}, expected a tensor")
        if shape is not None and shape != tuple(t.shape):
            raise ValueError(f"{key!r} is {shape} in the file, {tuple(t.shape)} in the model")
        if _kind(dtype) != _kind(t.dtype):
            raise ValueError(f"{key!r} is {dtype} in the file, {t.dtype} in the model, expected the same kind")


def _kind(dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return "bool"
    return "floating" if dtype.is_floating_point else "complex" if dtype.is_complex else "integer"
