"""Pattern: where a sparse matrix holds its values, in compressed rows and, for its transpose, in compressed columns."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparse_ops import extension

# row_offsets, columns, t_row_offsets, t_columns, t_permutation
Tensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

INDEX_LIMIT = 2**31 - 1
_COLLECTED = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.bool,
    torch.uint8,
    torch.int32,
    torch.int64,
)
_INDEX_DTYPES = (torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64)


@dataclass(frozen=True, eq=False)
class Pattern:
    """The structure of a sparse (rows, columns) matrix, without its values; immutable.

    Values lie in row-major order: row r holds those from row_offsets[r] to row_offsets[r + 1] - 1, in the columns
    `columns[...]`, which increase strictly within a row. The transpose holds the same values in the order
    values[t_permutation], in rows t_row_offsets and columns t_columns. All five tensors are int32, 1-D, on one device.

    Build one with `from_mask`, `from_dense` or `from_csr`; the constructor itself checks nothing.
    """

    shape: tuple[int, int]
    row_offsets: Tensor
    columns: Tensor
    t_row_offsets: Tensor
    t_columns: Tensor
    t_permutation: Tensor

    @classmethod
    def from_mask(cls, mask: Tensor) -> "Pattern":
        """The pattern of the True (nonzero) elements of a matrix, or of a weight flattened after dimension 0."""
        if (collected := _collected(mask)) is not None:
            return collected[0]
        kept = _as_matrix(mask) != 0
        rows, columns = kept.nonzero(as_tuple=True)
        offsets = _offsets(kept.sum(1))
        return cls._derive((kept.shape[0], kept.shape[1]), offsets, columns, rows)

    @classmethod
    def from_dense(cls, weight: Tensor) -> tuple["Pattern", Tensor]:
        """(pattern, values) of the nonzeros of a matrix, or of a weight flattened after its first dimension.

        A NaN is a nonzero; -0.0 is a zero. The values are a copy without gradient history.
        """
        if (collected := _collected(weight)) is not None:
            return collected
        pattern = cls.from_mask(weight)
        return pattern, pattern.gather(weight.detach())

    @classmethod
    def from_csr(cls, shape: Sequence[int], row_offsets: Tensor, columns: Tensor) -> "Pattern":
        """The pattern of tensors that come from outside: everything is checked, the transpose is derived.

        shape: (rows, columns). row_offsets: (rows + 1,), columns: (nnz,), of any integer dtype, strictly increasing in
        each row. Raises ValueError that names what is wrong, and its value.
        """
        return cls._derive(*validated(shape, row_offsets, columns))

    @classmethod
    def _derive(cls, shape: tuple[int, int], row_offsets: Tensor, columns: Tensor, rows: Tensor) -> "Pattern":
        if columns.numel() > INDEX_LIMIT or max(shape) > INDEX_LIMIT:
            raise ValueError(f"Pattern: shape {shape} with {columns.numel()} values does not fit 32-bit indices")
        permutation = torch.sort(columns, stable=True).indices
        t_offsets = _offsets(torch.bincount(columns, minlength=shape[1]))
        tensors = (row_offsets, columns, t_offsets, rows[permutation], permutation)
        return cls(shape, *(t.to(torch.int32).contiguous() for t in tensors))

    @property
    def nnz(self) -> int:
        """How many values the matrix holds."""
        return self.columns.numel()

    @property
    def density(self) -> float:
        """nnz as a share of all elements, in [0, 1]; 0 for a matrix without elements."""
        return self.nnz / max(1, self.shape[0] * self.shape[1])

    def tensors(self) -> Tensors:
        """(row_offsets, columns, t_row_offsets, t_columns, t_permutation): what ops take, in their order."""
        return self.row_offsets, self.columns, self.t_row_offsets, self.t_columns, self.t_permutation

    def rows(self) -> Tensor:
        """The row of each value, (nnz,) int64."""
        return row_indices(self.row_offsets, self.nnz)

    def gather(self, dense: Tensor) -> Tensor:
        """The elements of a dense tensor of this matrix's elements at the pattern's positions, (nnz,)."""
        matrix = _as_matrix(dense)
        if tuple(matrix.shape) != self.shape:
            raise ValueError(f"Pattern.gather: the tensor is {tuple(dense.shape)}, the pattern {self.shape}")
        return matrix[self.rows(), self.columns.long()]

    def to_dense(self, values: Tensor) -> Tensor:
        """The dense (rows, columns) matrix with `values` (nnz,) at the pattern's positions and 0 elsewhere."""
        if values.shape != (self.nnz,):
            raise ValueError(f"Pattern.to_dense: values are {tuple(values.shape)}, expected ({self.nnz},)")
        return scatter(self.shape, self.row_offsets, self.columns, values)

    def to(self, device: torch.device | str) -> "Pattern":
        """The same pattern on another device."""
        return Pattern(self.shape, *(t.to(device) for t in self.tensors()))

    def __repr__(self) -> str:
        return f"Pattern({self.shape[0]} x {self.shape[1]}, nnz={self.nnz}, density={self.density:.4g})"


def _collected(weight: Tensor) -> tuple[Pattern, Tensor] | None:
    """(pattern, values) by the C++ kernels: two passes over the matrix, a counting sort. None where they do not fit."""
    matrix = _as_matrix(weight.detach())
    plain = type(weight) in (Tensor, nn.Parameter) and matrix.device.type == "cpu" and matrix.dtype in _COLLECTED
    if not plain or max(matrix.shape) > INDEX_LIMIT or extension.failure() is not None:
        return None
    matrix, (rows, columns) = matrix.contiguous(), matrix.shape
    row_offsets = torch.empty(rows + 1, dtype=torch.int32)
    nnz = extension.native().csr_pattern_offsets(matrix, row_offsets)
    if nnz > INDEX_LIMIT:
        raise ValueError(f"Pattern: shape {(rows, columns)} with {nnz} values does not fit 32-bit indices")
    places, t_places, permutation = (torch.empty(nnz, dtype=torch.int32) for _ in range(3))
    t_offsets = torch.empty(columns + 1, dtype=torch.int32)
    values = matrix.new_empty(nnz)
    extension.native().csr_pattern_fill(matrix, row_offsets, places, t_offsets, t_places, permutation, values)
    return Pattern((rows, columns), row_offsets, places, t_offsets, t_places, permutation), values


def row_indices(row_offsets: Tensor, nnz: int) -> Tensor:
    """The row of each of nnz values, int64; traceable, since nnz is given."""
    rows = torch.arange(row_offsets.numel() - 1, device=row_offsets.device)
    return rows.repeat_interleave(row_offsets.diff(), output_size=nnz)


def scatter(shape: Sequence[int], row_offsets: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """The dense matrix of the tensors of a pattern and its values; differentiable in the values."""
    flat = row_indices(row_offsets, columns.numel()) * shape[1] + columns
    return values.new_zeros(shape[0] * shape[1]).index_put((flat,), values).view(tuple(shape))


def transposed(
    row_offsets: Tensor, columns: Tensor, t_row_offsets: Tensor, t_columns: Tensor, t_permutation: Tensor
) -> Tensors:
    """The tensors of the transposed pattern, whose values are values[t_permutation]."""
    places = torch.arange(t_permutation.numel(), dtype=torch.int32, device=t_permutation.device)
    back = torch.empty_like(t_permutation).scatter_(0, t_permutation.long(), places)
    return t_row_offsets, t_columns, row_offsets, columns, back


def validated(
    shape: Sequence[int], row_offsets: Tensor, columns: Tensor
) -> tuple[tuple[int, int], Tensor, Tensor, Tensor]:
    """(shape, row_offsets, columns, rows) of tensors that come from outside, as int64, or the ValueError of `from_csr`.

    Allocates in proportion to the tensors, whatever the shape.
    """
    if len(shape) != 2 or any(not isinstance(s, int) or not 0 <= s <= INDEX_LIMIT for s in shape):
        raise ValueError(f"Pattern: the shape is {tuple(shape)}, expected (rows, columns) between 0 and {INDEX_LIMIT}")
    n_rows, n_columns = shape
    for name, t in (("row_offsets", row_offsets), ("columns", columns)):
        if t.dim() != 1 or t.dtype not in _INDEX_DTYPES:
            raise ValueError(f"Pattern: {name} is {t.dtype} {tuple(t.shape)}, expected a 1-D integer tensor")
    if row_offsets.device != columns.device:
        raise ValueError(f"Pattern: row_offsets is on {row_offsets.device}, columns on {columns.device}")
    if row_offsets.numel() != n_rows + 1:
        raise ValueError(
            f"Pattern: row_offsets has {row_offsets.numel()} entries, expected {n_rows + 1} for {n_rows} rows"
        )
    offsets, columns = row_offsets.long(), columns.long()
    if (first := int(offsets[0])) != 0 or int(offsets[-1]) != columns.numel():
        ends = f"{first} and {int(offsets[-1])}"
        raise ValueError(f"Pattern: row_offsets begins and ends with {ends}, expected 0 and {columns.numel()}")
    if (falls := (offsets.diff() < 0).nonzero()).numel():
        r = int(falls[0])
        raise ValueError(f"Pattern: row_offsets falls from {int(offsets[r])} to {int(offsets[r + 1])} at row {r}")
    if (outside := ((columns < 0) | (columns >= n_columns)).nonzero()).numel():
        i = int(outside[0])
        raise ValueError(f"Pattern: columns[{i}] is {int(columns[i])}, expected 0 to {n_columns - 1}")
    rows = row_indices(offsets, columns.numel())
    if (repeats := ((rows * n_columns + columns).diff() <= 0).nonzero()).numel():
        i = int(repeats[0])
        raise ValueError(
            f"Pattern: columns[{i}] is {int(columns[i])} and columns[{i + 1}] is {int(columns[i + 1])}, "
            f"expected them to increase within row {int(rows[i])}"
        )
    return (n_rows, n_columns), offsets, columns, rows


def _as_matrix(weight: Tensor) -> Tensor:
    if weight.dim() < 2:
        raise ValueError(f"Pattern: a weight needs two dimensions or more, got {tuple(weight.shape)}")
    return weight if weight.dim() == 2 else weight.reshape(weight.shape[0], math.prod(weight.shape[1:]))


def _offsets(counts: Tensor) -> Tensor:
    return torch.cat((counts.new_zeros(1), counts.cumsum(0)))
