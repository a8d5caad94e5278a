"""What stands in a model file: tensors, dense or compressed, and a header that says which; checked when it is read.

A file is safetensors; its header holds one JSON entry, `sparse_ops`:

    format, version   "sparse_ops", 1
    layers            module name -> {kind, shape}: a sparse layer, <module>.values, .row_offsets and .columns
    compressed        tensor name -> {encoding, shape}: a dense tensor with many zeros, restored dense
                      csr: <name>.values, <name>.row_offsets, <name>.columns;  bitmask: <name>.values, <name>.bitmask
    shared            tensor name -> the name under which the same tensor is stored
    sha256            over all entries above and the names, dtypes, shapes and bytes of all tensors (`digest`)

Columns are uint16 where they fit, else int32; row_offsets are int32; a bitmask holds eight elements a byte, least
significant bit first.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from sparse_ops import formats
from sparse_ops.checks import FLOATS
from sparse_ops.formats import Pattern
from sparse_ops.nn.base import matrix_shape
from sparse_ops.reference.apply_masks import unpack_bits
from sparse_ops.reference.magnitude_mask import pack_bits

FORMAT, VERSION = "sparse_ops", 1
ENTRY = "sparse_ops"  # the key in the header of the safetensors file
MAX_DIMS = 16

# shape (None: any number of values), dtype
Form = tuple[tuple[int, ...] | None, torch.dtype]


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
        except (ValueError, RecursionError) as error:
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
    if len(shape) > MAX_DIMS:
        raise ValueError(f"{name!r} has {len(shape)} dimensions, expected {MAX_DIMS} or less")
    if math.prod(shape) >= 2**48:
        raise ValueError(f"{name!r} has shape {shape!r}, which no memory holds")
    return tuple(shape)


def digest(tensors: dict[str, Tensor], header: Header) -> str:
    """sha256 over the header's entries, but itself, and every tensor's name, dtype, shape and bytes; copies nothing."""
    total = hashlib.sha256(replace(header, sha256="").dumps().encode())
    for name, t in sorted(tensors.items()):
        total.update(json.dumps([name, str(t.dtype), list(t.shape)]).encode())
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


@dataclass(frozen=True)
class Stored:
    """A tensor or a sparse layer as it stands in a file; what is wrong with it is found before it grows.

    encoding: None for a tensor stored as it is. shape: of the dense tensor. parts: values, and row_offsets and columns,
    or bitmask. shared: the name under which it is really stored, where that is another one.
    """

    name: str
    encoding: Kind | Encoding | None
    shape: tuple[int, ...]
    parts: dict[str, Tensor]
    shared: str | None = None

    @property
    def values(self) -> Tensor:
        """The values that are stored, in any shape where nothing else is."""
        return self.parts["values"]

    def forms(self) -> dict[str, Form]:
        """Shape and dtype of each entry in the state_dict, from the header alone."""
        if not isinstance(self.encoding, Kind):
            return {self.name: (self.shape, self.values.dtype)}
        shapes = {"row_offsets": (self.shape[0] + 1,)}
        return {join(self.name, part): (shapes.get(part), t.dtype) for part, t in self.parts.items()}

    def check(self) -> None:
        """ValueError for anything inconsistent. Allocates in proportion to the parts, whatever the shape."""
        values = join(self.name, "values")
        if self.encoding is None:
            return
        if self.values.dtype not in FLOATS:
            raise ValueError(f"{values} is {self.values.dtype}, expected floating point")
        places = self._bits_set() if self.encoding == Encoding.BITMASK else self._csr()[1].numel()
        if self.values.shape != (places,):
            raise ValueError(f"{values} is {tuple(self.values.shape)}, its structure has {places} places")

    def decode(self) -> dict[str, Tensor]:
        """The entries of the state_dict; a compressed tensor is dense in it, so its shape must be a trusted one."""
        self.check()
        match self.encoding:
            case None:
                return {self.name: self.values}
            case Encoding.CSR:
                dense = formats.scatter(matrix_shape(self.shape), *self._csr(), self.values)
            case Encoding.BITMASK:
                n = math.prod(self.shape)
                dense = self.values.new_zeros(n)
                dense[unpack_bits(self.parts["bitmask"], n)] = self.values
            case Kind():
                return {join(self.name, part): t for part, t in self.parts.items()}
        return {self.name: dense.view(self.shape)}

    def _csr(self) -> tuple[Tensor, Tensor]:
        """(row_offsets, columns), validated, as int64."""
        if len(self.shape) < 2:
            raise ValueError(f"{self.name!r} has shape {self.shape}, expected two dimensions or more")
        row_offsets, columns = self.parts["row_offsets"], self.parts["columns"]
        if row_offsets.dtype != torch.int32 or columns.dtype not in (torch.int32, torch.uint16):
            raise ValueError(
                f"{self.name!r} has row_offsets of {row_offsets.dtype} and columns of {columns.dtype}, "
                "expected int32, and int32 or uint16"
            )
        try:
            return formats.validated(matrix_shape(self.shape), row_offsets, columns)[1:3]
        except ValueError as error:
            raise ValueError(f"{self.name!r}: {error}") from None

    def _bits_set(self) -> int:
        """How many bits of the bitmask are set, its padding apart."""
        bits, n = self.parts["bitmask"], math.prod(self.shape)
        if bits.dtype != torch.uint8 or bits.shape != ((n + 7) // 8,):
            name = join(self.name, "bitmask")
            raise ValueError(f"{name} is {bits.dtype} {tuple(bits.shape)}, expected uint8 ({(n + 7) // 8},)")
        counts = torch.bincount(bits, minlength=256).tolist()
        padding = int(bits[-1]) >> (n % 8) if n % 8 else 0
        return sum(byte.bit_count() * count for byte, count in enumerate(counts)) - padding.bit_count()


def stored(tensors: dict[str, Tensor], header: Header) -> list[Stored]:
    """What a file holds, in the header's terms; ValueError for a tensor that is missing or claimed twice."""
    for name, source in header.shared.items():
        if source in header.shared or not (source in tensors or source in header.compressed):
            raise ValueError(f"{name!r} is shared with {source!r}, which is not stored")
        if name in tensors or name in header.compressed:
            raise ValueError(f"{name!r} is stored, but said to be shared with {source!r}")
    left = tensors | {name: tensors[source] for name, source in header.shared.items() if source in tensors}
    result = {}
    for name, (encoding, shape) in header.compressed.items():
        structure = ("bitmask",) if encoding == Encoding.BITMASK else ("row_offsets", "columns")
        result[name] = Stored(name, encoding, shape, _take(left, name, *structure, "values"))
    for name, source in header.shared.items():
        if source in result:
            result[name] = replace(result[source], name=name, shared=source)
    for name, (kind, shape) in header.layers.items():
        parts = _take(left, name, "row_offsets", "columns", "values")
        if len(shape) < 2:
            raise ValueError(f"the layer {name!r} has shape {shape}, expected two dimensions or more")
        result[join(name, "values")] = Stored(name, kind, shape, parts, header.shared.get(join(name, "values")))
    plain = [Stored(name, None, tuple(t.shape), {"values": t}, header.shared.get(name)) for name, t in left.items()]
    items = [*result.values(), *plain]
    seen: set[str] = set()
    for key in (key for item in items for key in item.forms()):
        if key in seen:
            raise ValueError(f"{key!r} is stored twice")
        seen.add(key)
    return items


def join(module: str, name: str) -> str:
    """The key of a module's tensor; the whole model has the name ""."""
    return f"{module}.{name}" if module else name


def _take(tensors: dict[str, Tensor], name: str, *parts: str) -> dict[str, Tensor]:
    """Take tensors that must be there."""
    if missing := next((part for part in parts if join(name, part) not in tensors), None):
        raise ValueError(f"the tensor {join(name, missing)!r} is missing")
    return {part: tensors.pop(join(name, part)) for part in parts}
