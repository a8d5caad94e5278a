"""save, load, verify: what comes back is what was saved, and nothing else is accepted."""

import contextlib
import copy
import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune

import sparse_ops
from sparse_ops import encodings
from sparse_ops.nn import SparseLinear
from sparse_ops.nn.base import SparseModule


def net(seed=0, sparsity=0.98):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(300, 200), nn.BatchNorm1d(200), nn.ReLU(), nn.Linear(200, 100), nn.Linear(100, 10))
    with torch.no_grad():
        for layer in (model[0], model[3]):
            layer.weight *= torch.rand_like(layer.weight) >= sparsity
    return model.eval()


def sparse_net(seed=0):
    return sparse_ops.sparsify(net(seed), policy="threshold:0.9", verbose=False)


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def rewrite(path, change_tensors=lambda t: None, change_entry=lambda e: None):
    """The same file with something else in it."""
    with safe_open(path, "pt") as file:
        entry = json.loads(file.metadata()["sparse_ops"])
    tensors = load_file(path)
    change_tensors(tensors)
    change_entry(entry)
    save_file(tensors, path, {"sparse_ops": json.dumps(entry)})


@pytest.mark.parametrize("source", [net, sparse_net])
@pytest.mark.parametrize("target", [net, sparse_net, lambda seed: sparse_ops.densify(sparse_net(seed))])
def test_round_trip_into_a_model_of_any_state(tmp_path, source, target):
    model, other = source(0), target(1)
    sparse_ops.save(model, tmp_path / "model.safetensors")
    loaded = sparse_ops.load(tmp_path / "model.safetensors", other)
    assert loaded is other
    assert same_state(loaded, model)
    assert [type(m) for m in loaded] == [type(m) for m in model]
    x = torch.randn(3, 300)
    assert torch.equal(loaded(x), model(x))
    assert os.listdir(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize("source", [net, sparse_net])
def test_zeros_take_no_room_whether_the_layer_runs_sparse_or_not(tmp_path, source):
    model = nn.Sequential(*source(0)[:1])
    sparse_ops.save(model, tmp_path / "model")
    assert (tmp_path / "model").stat().st_size < 300 * 200 * 4 / 20
    tensors = load_file(tmp_path / "model")
    assert any(name.endswith("columns") and t.dtype == torch.uint16 for name, t in tensors.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_every_value_of_a_dense_tensor_comes_back(tmp_path, dtype):
    model = nn.Module()
    for i, sparsity in enumerate((0.0, 0.6, 0.95, 1.0)):
        w = torch.randn(30, 4, 3, 3, dtype=dtype) * (torch.rand(30, 4, 3, 3) >= sparsity)
        w[0, 0, 0] = torch.tensor([-0.0, float("nan"), float("-inf")], dtype=dtype)
        model.register_parameter(f"w{i}", nn.Parameter(w.to(memory_format=torch.channels_last)))
    model.register_buffer("vector", torch.zeros(1000, dtype=dtype))
    model.register_buffer("count", torch.tensor(7))
    sparse_ops.save(model, tmp_path / "model")
    assert sparse_ops.verify(tmp_path / "model").bytes < 0.75 * sparse_ops.verify(tmp_path / "model").dense_bytes
    loaded = copy.deepcopy(model)
    with torch.no_grad():
        for t in (*loaded.parameters(), *loaded.buffers()):
            t.fill_(1)
    sparse_ops.load(tmp_path / "model", loaded)
    for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_dtype_of_the_model_and_zero_values_are_kept(tmp_path):
    model = sparse_net()
    with torch.no_grad():
        model[0].values[:5] = 0.0  # trained to zero: still part of the pattern
    sparse_ops.save(model, tmp_path / "model")
    loaded = sparse_ops.load(tmp_path / "model", net(1).double())
    assert loaded[0].values.dtype == torch.float64
    assert torch.equal(loaded[0].columns, model[0].columns)
    assert torch.equal(loaded[0].values.float(), model[0].values)


def test_shared_modules_and_tied_tensors_are_stored_once(tmp_path):
    def tied(seed):
        torch.manual_seed(seed)
        layer = sparse_net(seed)[0] if seed == 0 else net(seed)[0]
        model = nn.ModuleDict({"a": layer, "b": nn.Sequential(layer), "e": nn.Embedding(5, 10), "f": nn.Linear(10, 5)})
        model["f"].weight = model["e"].weight
        return model

    model = tied(0)
    sparse_ops.save(model, tmp_path / "model")
    stored = load_file(tmp_path / "model")
    assert "a.values" in stored and "b.0.values" not in stored and "f.weight" not in stored
    loaded = sparse_ops.load(tmp_path / "model", tied(1))
    assert loaded["a"] is loaded["b"][0] and isinstance(loaded["a"], SparseLinear)
    assert loaded["f"].weight is loaded["e"].weight
    assert same_state(loaded, model)
    names = [t.name for t in sparse_ops.verify(tmp_path / "model").tensors]
    assert names.count("a") == 1 and "b.0" not in names


def test_a_model_that_is_one_layer(tmp_path):
    layer = sparse_net()[0]
    sparse_ops.save(layer, tmp_path / "model")
    assert same_state(sparse_ops.load(tmp_path / "model", net(1)[0]), layer)


def test_convolutions(tmp_path):
    def convnet(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(6), nn.Conv2d(6, 5, 1))

    model = convnet(0).eval()
    with torch.no_grad():
        model[0].weight *= torch.rand_like(model[0].weight) < 0.2
    sparse = sparse_ops.sparsify(model, policy="all", verbose=False)
    sparse_ops.save(sparse, tmp_path / "model")
    loaded = sparse_ops.load(tmp_path / "model", convnet(1).eval())
    x = torch.randn(2, 4, 9, 9)
    assert [type(m) for m in loaded] == [type(m) for m in sparse]
    assert torch.equal(loaded(x), sparse(x))
    torch.testing.assert_close(loaded(x), model(x))


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    model, path = sparse_net(), tmp_path / "model"
    sparse_ops.save(model, path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        sparse_ops.save(net(1), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["model"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        sparse_ops.save(model, tmp_path / "nowhere" / "model")
    with pytest.raises(IsADirectoryError) as error:
        sparse_ops.save(model, tmp_path)
    assert str(error.value) == f"save: {tmp_path} is a folder, expected the name of a file in it"
    assert os.listdir(tmp_path) == ["model"] and not list(tmp_path.parent.glob(".*.tmp"))


def test_verify_reports_tensors_and_damage(tmp_path):
    model, path = sparse_net(), tmp_path / "model"
    sparse_ops.save(model, path)
    report = sparse_ops.verify(path)
    assert report.hash_ok and report.bytes == path.stat().st_size
    row = {t.name: t for t in report.tensors}["0"]
    assert (row.encoding, row.shape, row.zeros) == (
        "SparseLinear",
        (200, 300),
        60000 - int(model[0].weight.count_nonzero()),
    )
    assert report.dense_bytes == sum(t.nbytes for t in net().state_dict().values())
    assert "the hash is right" in str(report) and json.dumps(report.to_dict())

    def move(tensors):
        columns = tensors["0.columns"].int()
        gaps = (columns.diff() > 1).nonzero().flatten()
        columns[gaps[0]] += 1
        tensors["0.columns"] = columns.to(torch.uint16)

    rewrite(path, move)
    assert not sparse_ops.verify(path).hash_ok
    with pytest.raises(ValueError, match="the hash of its contents"):
        sparse_ops.load(path, net())


def no_hash(path, *changes):
    """Change tensors and make the hash fit again, so that the deeper checks are reached."""
    rewrite(path, *changes)
    with safe_open(path, "pt") as file, contextlib.suppress(ValueError):  # of a header that is wrong itself
        digest = encodings.digest(load_file(path), encodings.Header.loads(file.metadata()["sparse_ops"]))
        rewrite(path, change_entry=lambda e: e.update(sha256=digest))


def set_tensor(name, value):
    return lambda tensors: tensors.__setitem__(name, value(tensors[name]) if callable(value) else value)


@pytest.mark.parametrize(
    "change, message",
    [
        ((set_tensor("0.columns", lambda t: t.int() + 299),), "expected 0 to 299"),
        ((set_tensor("0.row_offsets", lambda t: t[1:].clone()),), "row_offsets has 200 entries, expected 201"),
        ((set_tensor("0.values", lambda t: t[1:].clone()),), r"0\.values is .* places"),
        ((set_tensor("0.values", lambda t: t.int()),), r"'0\.values' is torch\.int32 in the file"),
        ((lambda t: t.pop("0.values"),), r"'0\.values' is missing"),
        ((lambda t: t.pop("1.weight"),), r"'1\.weight' is missing"),
        ((set_tensor("extra", torch.ones(1)),), "'extra' is not in the model"),
        (
            (set_tensor("4.weight", torch.ones(10, 99)),),
            r"'4\.weight' is \(10, 99\) in the file, \(10, 100\) in the model",
        ),
        ((lambda t: None, lambda e: e.update(version=2)), "format version is 2, this release reads version 1"),
        ((lambda t: None, lambda e: e.update(format="x")), "does not say format"),
        (
            (lambda t: None, lambda e: e["layers"]["0"].update(kind="os.system")),
            "has kind 'os.system', expected one of",
        ),
        ((lambda t: None, lambda e: e["layers"]["0"].update(shape=[200, -1])), r"has shape \[200, -1\]"),
        ((lambda t: None, lambda e: e["layers"]["0"].update(shape=[2**31 - 1, 2**31 - 1])), "which no memory holds"),
        ((lambda t: None, lambda e: e["layers"]["0"].update(shape=[100, 300])), r"'0' is \(100, 300\) in the file"),
        ((lambda t: None, lambda e: e["layers"].update(zz=e["layers"].pop("0"))), r"'zz\.row_offsets' is missing"),
        (
            (lambda t: None, lambda e: e["layers"]["0"].update(kind="SparseConv2d")),
            "SparseConv2d in the file, Linear in",
        ),
        (
            (lambda t: None, lambda e: e.update(shared={"1.weight": "nobody"})),
            "'1.weight' is shared with 'nobody', which is not stored",
        ),
        ((lambda t: None, lambda e: e.update(compressed={"4.weight": {"encoding": "zip", "shape": [1]}})), "'zip'"),
        ((lambda t: None, lambda e: e.update(layers=[])), "'layers' is"),
    ],
)
def test_a_wrong_file_is_refused_and_the_model_unchanged(tmp_path, change, message):
    path, model = tmp_path / "model", net(1)
    sparse_ops.save(sparse_net(), path)
    no_hash(path, *change)
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=message) as error:
        sparse_ops.load(path, model)
    assert str(path) in str(error.value)
    assert same_state(model, before) and not any(isinstance(m, SparseModule) for m in model.modules())


def test_foreign_and_truncated_files(tmp_path):
    path = tmp_path / "model"
    sparse_ops.save(sparse_net(), path)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:100], whole[:-1], b"\xff" * 200):
        path.write_bytes(content)
        for read in (sparse_ops.verify, lambda p: sparse_ops.load(p, net())):
            with pytest.raises(ValueError, match="truncated or not a safetensors file"):
                read(path)
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="it is not a sparse_ops file"):
        sparse_ops.load(path, net())
    with pytest.raises(FileNotFoundError):
        sparse_ops.load(tmp_path / "nothing", net())


def test_a_model_that_does_not_fit(tmp_path):
    path = tmp_path / "model"
    sparse_ops.save(sparse_net(), path)
    with pytest.raises(ValueError, match=r"'0' is \(200, 300\) in the file, \(7, 300\) in the model"):
        sparse_ops.load(path, nn.Sequential(nn.Linear(300, 7)))
    with pytest.raises(ValueError, match="the layer '0' is SparseLinear in the file, ReLU in the model"):
        sparse_ops.load(path, nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="the sparse layer '0' is not in the model"):
        sparse_ops.load(path, nn.Identity())
    wrapped = nn.ModuleDict({"n": net(1)})
    with pytest.raises(ValueError, match="0 of its 4 layers are among the model's 4: it belongs to another network"):
        sparse_ops.load(path, wrapped)
    sparse_ops.save(net(), path)
    with pytest.raises(ValueError, match=r"'n.0.bias' is missing .* it belongs to another network"):
        sparse_ops.load(path, wrapped)
    with pytest.raises(ValueError, match=r"'5.bias' is missing \(2 such keys\)$"):
        sparse_ops.load(path, nn.Sequential(*net(1), nn.Linear(10, 10)))
    extra = type("Extra", (nn.Module,), {"get_extra_state": lambda self: {}})()
    with pytest.raises(ValueError, match="'_extra_state' in the state_dict is dict"):
        sparse_ops.save(extra, path)


def test_a_model_masked_by_torch_is_stored_under_its_plain_names(tmp_path):
    """A dense layer pruned by torch.nn.utils.prune loads into a plain model and into one that is masked again."""
    model = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 5))
    prune.l1_unstructured(model[0], "weight", 0.3)
    prune.l1_unstructured(model[2], "bias", 2)
    path = tmp_path / "model.safetensors"
    sparse_ops.save(model, path)
    x = torch.randn(7, 30)
    plain = sparse_ops.load(path, nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 5)))
    assert torch.equal(plain(x), model(x))
    masked = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 5))
    prune.random_unstructured(masked[0], "weight", 0.9)
    prune.random_unstructured(masked[2], "bias", 1)
    assert torch.equal(sparse_ops.load(path, masked)(x), model(x))
    assert int((masked[0].weight_mask == 0).sum()) == int((model[0].weight == 0).sum())


def test_others_may_read_the_file_as_the_umask_says(tmp_path):
    sparse_ops.save(net(), tmp_path / "model.safetensors")
    (tmp_path / "plain").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_swapped_arguments_and_folders(tmp_path):
    model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"save\(model, path\): model is of type str, expected a torch.nn.Module"):
        sparse_ops.save("model.safetensors", model)
    with pytest.raises(TypeError, match=r"load\(path, model\): model is of type PosixPath, expected a torch.nn.Module"):
        sparse_ops.load(model, tmp_path)
    with pytest.raises(TypeError, match=r"load\(path, model\): path is of type int, expected a path"):
        sparse_ops.load(3, model)
    for read in (sparse_ops.files.verify, lambda path: sparse_ops.load(path, model)):
        with pytest.raises(IsADirectoryError):
            read(tmp_path)
