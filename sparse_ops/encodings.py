"""What stands in a model file: tensors, dense or compressed, and a header that says which; checked when it is read.

A file is safetensors; its header holds one JSON entry, `sparse_ops`:

    format, version   "sparse_ops", 1
    layers            module name -> {kind, shape}: a sparse layer, <module>.values, .row_offsets and .columns
    compressed        tensor name -> {encoding, shape}: a dense tensor with many zeros, restored dense
                      csr: <name>.values, <name>.row_offsets, <name>.columns;  bitmask: <name>.values, <name>.bitmask
    shared            tensor name -> the name under which the same tensor is stored
    sha256            over the names, shapes and bytes of all row_offsets, columns and bitmasks

Columns are uint16 where they fit, else int32; a bitmask holds eight elements a byte, least significant bit first.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from sparse_ops.checks import FLOATS
from sparse_ops.formats import Pattern
from sparse_ops.nn.base import matrix_shape
from sparse_ops.reference.apply_masks import unpack_bits
from sparse_ops.reference.magnitude_mask import pack_bits

FORMAT, VERSION = "sparse_ops", 1
ENTRY = "sparse_ops"  # the key in the header of the safetensors file
STRUCTURE = ("row_offsets", "columns", "bitmask")


class Encoding(StrEnum):
    """How a compressed dense tensor is stored; no other name is accepted."""

    CSR = "csr"
    BITMASK = "bitmask"


class Kind(StrEnum):
    """The sparse layers a file may hold; no other name is accepted."""

    LINEAR = "SparseLinear"
    CONV2D = "SparseConv2d"


@dataclass
class Header:
    """The JSON entry; shapes are those of the dense tensors."""

    layers: dict[str, tuple[Kind, tuple[int, ...]]] = field(default_factory=dict)
    compressed: dict[str, tuple[Encoding, tuple[int, ...]]] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    sha256: str = ""
    version: int = VERSION

    def dumps(self) -> str:
        """As JSON."""
        entry: dict[str, Any] = {"format": FORMAT} | asdict(self)
        entry["layers"] = {name: {"kind": k, "shape": shape} for name, (k, shape) in self.layers.items()}
        entry["compressed"] = {name: {"encoding": e, "shape": shape} for name, (e, shape) in self.compressed.items()}
        return json.dumps(entry, sort_keys=True)

    @classmethod
    def loads(cls, text: str | None) -> "Header":
        """From JSON that anyone may have written; ValueError for everything that is not of this format."""
        if text is None:
            raise ValueError(f"its header has no entry {ENTRY!r}: it is not a sparse_ops file")
        try:
            entry = json.loads(text)
        except ValueError as error:
            raise ValueError(f"its {ENTRY!r} entry is not JSON: {error}") from None
        if not isinstance(entry, dict) or entry.get("format") != FORMAT:
            raise ValueError(f"its {ENTRY!r} entry does not say format {FORMAT!r}")
        if (version := entry.get("version")) != VERSION:
            raise ValueError(f"its format version is {version!r}, this release reads version {VERSION}")
        shared = _table(entry, "shared")
        if (wrong := next((v for v in shared.values() if not isinstance(v, str)), None)) is not None:
            raise ValueError(f"its entry 'shared' names {wrong!r}, expected a tensor's name")
        if not isinstance(digest := entry.get("sha256"), str):
            raise ValueError(f"its sha256 is {digest!r}")
        layers = {n: (_member(Kind, n, item, "kind"), _shape(n, item)) for n, item in _table(entry, "layers").items()}
        compressed = {
            n: (_member(Encoding, n, item, "encoding"), _shape(n, item))
            for n, item in _table(entry, "compressed").items()
        }
        return cls(layers, compressed, shared, digest, version)


def _table(entry: dict[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(table := entry.get(key), dict):
        raise ValueError(f"its entry {key!r} is {table!r}, expected an object")
    return table


def _member(kind: Any, name: str, item: Any, key: str) -> Any:
    value = item.get(key) if isinstance(item, dict) else None
    if value not in list(kind):
        raise ValueError(f"{name!r} has {key} {value!r}, expected one of {', '.join(kind)}")
    return kind(value)


def _shape(name: str, item: dict[str, Any]) -> tuple[int, ...]:
    shape = item.get("shape")
    if not isinstance(shape, list) or not all(type(s) is int and 0 <= s < 2**31 for s in shape):
        raise ValueError(f"{name!r} has shape {shape!r}, expected a list of sizes")
    if math.prod(shape) >= 2**48:
        raise ValueError(f"{name!r} has shape {shape!r}, which no memory holds")
    return tuple(shape)


def digest(tensors: dict[str, Tensor]) -> str:
    """sha256 over the structure: the names, dtypes, shapes and bytes of all row_offsets, columns and bitmasks."""
    total = hashlib.sha256()
    for name in sorted(n for n in tensors if n.rpartition(".")[2] in STRUCTURE):
        t = tensors[name]
        total.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        total.update(t.reshape(-1).view(torch.uint8).numpy().data if t.numel() else b"")
    return total.hexdigest()


def narrow_columns(columns: Tensor, n_columns: int) -> Tensor:
    """Columns in the smallest dtype of a file that holds them."""
    return columns.to(torch.uint16 if n_columns <= 2**16 else torch.int32)


def compress(name: str, t: Tensor) -> tuple[Encoding, dict[str, Tensor]] | None:
    """(encoding, tensors) of a dense tensor in the smallest form, without loss; None where that is the dense one.

    -0.0, which a masking product leaves, is a zero and comes back as +0; a NaN is a value.
    """
    if t.dtype not in FLOATS or t.numel() == 0:
        return None
    keep = (t != 0).contiguous()
    nnz = int(keep.count_nonzero())
    sizes = {None: t.nbytes, Encoding.BITMASK: nnz * t.element_size() + (t.numel() + 7) // 8}
    if t.dim() > 1:
        rows, columns = matrix_shape(t.shape)
        sizes[Encoding.CSR] = nnz * (t.element_size() + (2 if columns <= 2**16 else 4)) + 4 * (rows + 1)
    best = min(sizes, key=lambda e: sizes[e])
    if best is None:
        return None
    tensors = {f"{name}.values": t[keep]}
    if best == Encoding.BITMASK:
        return best, tensors | {f"{name}.bitmask": pack_bits(keep.flatten())}
    pattern = Pattern.from_mask(keep)
    structure = {"row_offsets": pattern.row_offsets, "columns": narrow_columns(pattern.columns, pattern.shape[1])}
    return best, tensors | {f"{name}.{key}": value for key, value in structure.items()}


def decompress(name: str, encoding: Encoding, shape: tuple[int, ...], tensors: dict[str, Tensor]) -> Tensor:
    """The dense tensor; takes what it uses out of `tensors`. ValueError for anything inconsistent."""
    values = take(tensors, f"{name}.values")
    if values.dim() != 1:
        raise ValueError(f"{name}.values is {tuple(values.shape)}, expected one dimension")
    if encoding == Encoding.CSR:
        if len(shape) < 2:
            raise ValueError(f"{name!r} has shape {shape}, csr needs two dimensions")
        pattern = take_pattern(f"{name}.", shape, tensors)
        check_nnz(name, values, pattern.nnz)
        return pattern.to_dense(values).view(shape)
    bits, n = take(tensors, f"{name}.bitmask"), math.prod(shape)
    if bits.dtype != torch.uint8 or bits.shape != ((n + 7) // 8,):
        raise ValueError(f"{name}.bitmask is {bits.dtype} {tuple(bits.shape)}, expected uint8 ({(n + 7) // 8},)")
    keep = unpack_bits(bits, n)
    check_nnz(name, values, int(keep.count_nonzero()))
    dense = values.new_zeros(n)
    dense[keep] = values
    return dense.view(shape)


def check_nnz(name: str, values: Tensor, nnz: int) -> None:
    """As many values as the structure has places, of a floating dtype."""
    if values.dtype not in FLOATS:
        raise ValueError(f"{name}.values is {values.dtype}, expected floating point")
    if values.shape != (nnz,):
        raise ValueError(f"{name}.values is {tuple(values.shape)}, its structure has {nnz} places")


def take(tensors: dict[str, Tensor], name: str) -> Tensor:
    """Take a tensor that must be there."""
    if name not in tensors:
        raise ValueError(f"the tensor {name!r} is missing")
    return tensors.pop(name)


def take_pattern(prefix: str, shape: tuple[int, ...], tensors: dict[str, Tensor]) -> Pattern:
    """The validated pattern of the tensors row_offsets and columns behind a prefix."""
    row_offsets, columns = take(tensors, f"{prefix}row_offsets"), take(tensors, f"{prefix}columns")
    try:
        return Pattern.from_csr(matrix_shape(shape), row_offsets, columns)
    except ValueError as error:
        raise ValueError(f"{prefix.rstrip('.')!r}: {error}") from None
