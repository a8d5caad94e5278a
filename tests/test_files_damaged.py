"""Model files that are damaged or hostile: every flipped bit is noticed, and no shape makes a small file big."""

import copy
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import sparse_ops
from sparse_ops import cli, encodings
from sparse_ops.encodings import Encoding, Header, Kind


def write(path, tensors, header):
    """A file whose hash is right, whatever stands in it."""
    header = replace(header, sha256=encodings.digest(tensors, header))
    save_file(tensors, path, {encodings.ENTRY: header.dumps()})


def structure(rows, last_column, dtype=torch.float32):
    """The tensors of a matrix with a single value, in its last place."""
    offsets = torch.zeros(rows + 1, dtype=torch.int32)
    offsets[-1] = 1
    columns = torch.tensor([last_column], dtype=torch.int32)
    return {"row_offsets": offsets, "columns": columns, "values": torch.ones(1, dtype=dtype)}


def model_of_every_encoding(seed):
    """Sparse, compressed both ways, dense, shared, integers; a file of it is some kilobytes."""
    torch.manual_seed(seed)
    model = nn.ModuleDict({"s": nn.Linear(40, 30), "c": nn.Linear(40, 30), "b": nn.Linear(20, 20, False)})
    with torch.no_grad():
        for key, density in (("s", 0.1), ("c", 0.005), ("b", 0.6)):
            model[key].weight *= torch.rand_like(model[key].weight) < density
    model.update({"n": nn.BatchNorm1d(8), "e": nn.Linear(5, 7), "f": nn.Linear(5, 7)})
    model["f"].weight = model["e"].weight
    model["s"] = sparse_ops.sparsify(model["s"], policy="all", verbose=False)
    return model


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_every_flipped_bit_is_noticed(tmp_path):
    path, target = tmp_path / "model", model_of_every_encoding(1)
    sparse_ops.save(model_of_every_encoding(0), path)
    encodings_used = {t.encoding for t in sparse_ops.verify(path).tensors}
    assert encodings_used == {"SparseLinear", "csr", "bitmask", "dense"}
    whole, before = path.read_bytes(), copy.deepcopy(target)
    header = 8 + int.from_bytes(whole[:8], "little")
    text = len(whole[:header].rstrip(b" "))  # what follows up to the data is padding
    rng = torch.Generator().manual_seed(0)
    places = torch.cat(
        (torch.randint(text, (300,), generator=rng), torch.randint(header, len(whole), (300,), generator=rng))
    )
    for place in places.tolist():
        bit = 1 << int(torch.randint(8, (), generator=rng))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=str(path)):
            sparse_ops.load(path, target)
        try:
            assert not sparse_ops.verify(path).hash_ok
            assert cli.main(["verify", str(path)]) == 1
        except ValueError as error:
            assert str(path) in str(error)
    assert same_state(target, before)
    path.write_bytes(whole)
    assert same_state(sparse_ops.load(path, target), model_of_every_encoding(0))


CHILD = """
import json, resource, sys
import sparse_ops
from torch import nn

def run(call):
    try:
        return call().tensors[0].zeros
    except ValueError as error:
        return str(error)

model = nn.Sequential(nn.Linear(64, 64, bias=False))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
said = run(lambda: sparse_ops.load(sys.argv[1], model)), run(lambda: sparse_ops.verify(sys.argv[1]))
print(json.dumps([*said, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


@pytest.mark.parametrize("columns", [2**28, 2**30])
@pytest.mark.parametrize("form", ["layer", "compressed", "stored twice"])
def test_a_small_file_with_a_huge_shape_takes_little_memory(tmp_path, columns, form):
    """In a child, whose peak of resident memory is its own."""
    path, shape = tmp_path / "model", (64, columns)
    parts = structure(64, columns - 1)
    if form == "layer":
        write(path, {f"0.{k}": t for k, t in parts.items()}, Header(layers={"0": (Kind.LINEAR, shape)}))
    else:
        tensors = {f"0.weight.{k}": t for k, t in parts.items()}
        tensors |= {"0.weight": torch.ones(64, 64)} if form == "stored twice" else {}
        write(path, tensors, Header(compressed={"0.weight": (Encoding.CSR, shape)}))
    assert path.stat().st_size < 20_000
    done = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded, verified, kilobytes = json.loads(done.stdout)
    if form == "stored twice":
        assert "'0.weight' is stored twice" in loaded and "'0.weight' is stored twice" in verified
    else:
        assert f"is {shape} in the file, (64, 64) in the model" in loaded
        assert verified == 64 * columns - 1
    assert kilobytes < 100_000


def test_what_no_memory_holds_is_a_value_error(tmp_path):
    """A model without memory of its own (meta) fits any shape; 2**47 float32 are more than there are addresses."""
    path, model = tmp_path / "model", nn.Linear(2**31 - 1, 2**16, bias=False, device="meta")
    tensors = {f"weight.{k}": t for k, t in structure(2**16, 5).items()}
    write(path, tensors, Header(compressed={"weight": (Encoding.CSR, tuple(model.weight.shape))}))
    assert sparse_ops.verify(path).hash_ok
    with pytest.raises(ValueError, match=r"what it holds cannot be made here: .*alloc"):
        sparse_ops.load(path, model)


@pytest.mark.parametrize(
    "stored, wanted",
    [
        (torch.int64, torch.float32),
        (torch.complex64, torch.float32),
        (torch.float32, torch.int64),
        (torch.float32, torch.bool),
        (torch.bool, torch.int64),
    ],
)
def test_a_dtype_of_another_kind_is_refused(tmp_path, stored, wanted):
    path, model = tmp_path / "model", nn.Module()
    model.register_buffer("t", torch.ones(3, 4).to(wanted))
    write(path, {"t": torch.zeros(3, 4, dtype=stored)}, Header())
    with pytest.raises(ValueError, match=f"'t' is {stored} in the file, {wanted} in the model"):
        sparse_ops.load(path, model)
    assert torch.equal(model.t, torch.ones(3, 4).to(wanted))


def test_dtypes_of_one_kind_are_converted(tmp_path):
    path, model = tmp_path / "model", nn.Module()
    model.register_buffer("i", torch.ones(3, dtype=torch.int64))
    model.register_buffer("x", torch.ones(3, dtype=torch.bfloat16))
    write(path, {"i": torch.arange(3, dtype=torch.int32), "x": torch.arange(3.0, dtype=torch.float64)}, Header())
    sparse_ops.load(path, model)
    assert (model.i.dtype, model.x.dtype) == (torch.int64, torch.bfloat16)
    assert model.i.tolist() == model.x.tolist() == [0, 1, 2]


def test_verify_counts_what_is_not_finite(tmp_path):
    path, model = tmp_path / "model", model_of_every_encoding(0)
    with torch.no_grad():
        model["s"].values[:3] = torch.tensor([float("nan"), float("inf"), float("-inf")])
        model["e"].weight[0, :2] = float("nan")
    sparse_ops.save(model, path)
    report = sparse_ops.verify(path)
    assert {t.name: t.non_finite for t in report.tensors if t.non_finite} == {"s": 3, "e.weight": 2}
    lines = [line for line in str(report).splitlines() if "NOT FINITE" in line]
    assert len(lines) == 2 and all(line.split()[0] in ("s", "e.weight") for line in lines)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.uint16, torch.uint64, torch.bool, torch.float8_e4m3fn, torch.complex64]
)
def test_verify_counts_zeros_of_any_dtype(tmp_path, dtype):
    model = nn.Module()
    model.register_buffer("t", torch.tensor([0.0, 1.0, 0.0]).to(dtype))
    sparse_ops.save(model, tmp_path / "model")
    (row,) = sparse_ops.verify(tmp_path / "model").tensors
    assert (row.zeros, row.non_finite, row.bytes) == (2, 0, 3 * dtype.itemsize)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 64])
def test_padding_of_a_bitmask_is_not_counted(tmp_path, n):
    path, values = tmp_path / "model", torch.ones(n - n // 2)
    bits = torch.full(((n + 7) // 8,), 0b01010101, dtype=torch.uint8)  # every other element, from the first
    if n % 8:
        bits[-1] |= 256 - (1 << n % 8)
    write(path, {"t.values": values, "t.bitmask": bits}, Header(compressed={"t": (Encoding.BITMASK, (n,))}))
    assert sparse_ops.verify(path).tensors[0].zeros == n // 2
    model = nn.Module()
    model.register_buffer("t", torch.zeros(n))
    assert sparse_ops.load(path, model).t.tolist() == [1.0 - i % 2 for i in range(n)]
