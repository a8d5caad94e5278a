"""A file of export runs in another process, is chosen anew on another machine, and errors say what is wrong."""

import concurrent.futures
import subprocess
import sys
import threading
import zipfile

import pytest
import torch
from inference.networks import cases, prune
from inference.test_optimize import assert_close, call
from torch import nn

from sparse_ops.inference import capture, export, load_exported, machine, optimize_for_inference

_capture = capture.capture
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

OTHER_PROCESS = """
import sys, torch, sparse_ops
x = torch.load(sys.argv[2])
with torch.no_grad():
    found = [sparse_ops.load_exported(sys.argv[1])(x), torch.export.load(sys.argv[1]).module()(x)]
torch.save(found, sys.argv[3])
"""


@pytest.mark.parametrize("name", ["bottleneck", "odd", "encoder"])
def test_a_file_computes_the_same_and_is_chosen_again_elsewhere(name, forms, tmp_path, monkeypatch):
    form = "sparse" if name == "encoder" else "batch_last"
    forms(form)
    model, example = cases()[name]
    path = tmp_path / "network.pt2"
    network = export(model, example, path)
    loaded = load_exported(path)
    assert torch.equal(*(torch.cat([t.flatten() for t in leaves(call(n, example))]) for n in (network, loaded)))
    assert [layer.sparse_form for _, layer in loaded.layers()] == [layer.sparse_form for _, layer in network.layers()]
    assert str(loaded.report()) == str(network.report())

    monkeypatch.setattr(machine, "here", lambda: {"isa": "other", "threads": 64})
    forms("dense")
    again = load_exported(path)
    assert again.report().machine == {"isa": "other", "threads": 64}
    assert not any(layer.sparse_form for _, layer in again.layers())
    assert_close(call(again, example), call(model, example), 1e-5)
    forms(form)
    sparse = load_exported(path)
    assert any(layer.sparse_form for _, layer in sparse.layers())
    assert_close(call(sparse, example), call(model, example), 1e-5)
    assert [r.batch_last for r in sparse.report().layers] == [r.batch_last for r in network.report().layers]


def test_pools_and_means_are_plain_again_elsewhere(forms, tmp_path, monkeypatch):
    forms("batch_last")
    pools = nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(16, 8, 1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *pools, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    x, path = torch.randn(6, 3, 20, 20), tmp_path / "network.pt2"
    network = export(prune(model).eval(), x, path)
    assert sum(row.batch_last for row in network.report().layers) >= 3
    monkeypatch.setattr(machine, "here", lambda: {"isa": "other", "threads": 64})
    forms("dense")
    plain = load_exported(path)
    assert not any("permute" in str(node.target) for node in plain.graph.graph.nodes)
    assert_close(plain(x), call(model, x), 1e-5)


def leaves(value):
    return torch.utils._pytree.tree_leaves(value)


def test_another_process_needs_the_package_alone(forms, tmp_path):
    forms("batch_last")
    model, example = cases()["mlp"]
    path, x, out = tmp_path / "network.pt2", tmp_path / "x.pt", tmp_path / "y.pt"
    network = optimize_for_inference(model, example, dtype="bfloat16")
    export(network, example, path)
    torch.save(example, x)
    command = [sys.executable, "-W", "ignore", "-c", OTHER_PROCESS, *map(str, (path, x, out))]
    subprocess.run(command, check=True, cwd=tmp_path)
    for found in torch.load(out):
        assert_close(found, call(model, example), 0.05)
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".pt2"] == ["network.pt2"]


def test_errors_and_nothing_lost(forms, tmp_path):
    forms("dense")
    model, example = cases()["mlp"]
    path = tmp_path / "network.pt2"
    with pytest.raises(ValueError, match=r"ends in .pt2"):
        export(model, example, tmp_path / "network.bin")
    with pytest.raises(FileNotFoundError):
        export(model, example, tmp_path / "no" / "network.pt2")
    with pytest.raises(FileNotFoundError):
        load_exported(path)
    network = export(model, example, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="this network is for"):
        export(network, torch.randn(9, 3, 4, 5), path)
    assert path.read_bytes() == before
    for wrong in (3, None, b"network.pt2"):
        with pytest.raises(TypeError, match=f"export.* path is of type {type(wrong).__name__}, expected a path"):
            export(model, example, wrong)
        with pytest.raises(TypeError, match=f"load_exported.* path is of type {type(wrong).__name__}, expected a path"):
            load_exported(wrong)
    with pytest.raises(TypeError, match=r"export.* model is of type Tensor, expected a torch\.nn\.Module"):
        export(example, model, path)
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.randn(1, 2),)), path)
    with pytest.raises(ValueError, match=r"but not of sparse_ops.export"):
        load_exported(path)


def rewritten(source, target, change):
    """The archive with each entry's bytes as change(name, bytes) has them, None leaving it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if (data := change(name, old.read(name))) is not None:
                new.writestr(name, data)


def test_a_damaged_file_is_named_without_noise(forms, tmp_path, capfd, caplog):
    forms("sparse")
    model, example = cases()["mlp"]
    good, path = tmp_path / "good.pt2", tmp_path / "network.pt2"
    export(model, example, good)
    whole = good.read_bytes()
    middle = len(whole) // 2
    values = load_exported(good).layers()[0][1].values.numpy().tobytes()
    changed = whole.index(values)
    damaged = {
        "empty": b"",
        "one byte": whole[:1],
        "text": b"hello",
        "half": whole[:middle],
        "without its last byte": whole[:-1],
        "without its last 100": whole[:-100],
        "a weight changed": whole[:changed] + bytes(8) + whole[changed + 8 :],  # torch reads that
        "zeros inside": whole[: middle - 50] + bytes(100) + whole[middle + 50 :],
    }
    caplog.clear()
    capfd.readouterr()
    for name, data in damaged.items():
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"network\.pt2: it is damaged, or no file of torch\.export: \w") as caught:
            load_exported(path)
        assert len(str(caught.value)) < 300, name
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(ValueError, match=r"network\.pt2: it is damaged, or no file of torch\.export: parts of one"):
        load_exported(path)
    for header, reason in (
        ("{", "is no JSON"),
        ("[]", "version is None"),
        ('{"version": 2}', "does not fit its graph"),
    ):
        rewritten(good, path, lambda n, data, h=header: h if n.endswith("sparse_ops.json") else data)
        with pytest.raises(ValueError, match=rf"network\.pt2: .*{reason}"):
            load_exported(path)
    assert not capfd.readouterr().err and not caplog.records


def test_threads_may_optimise_while_others_serve(monkeypatch):
    """torch.export keeps its state in globals; a finished network does not mind, and optimising waits its turn."""
    monkeypatch.setattr(capture, "capture", _capture)
    torch.manual_seed(0)
    model, x, found, stop = nn.Linear(8, 3).eval(), torch.randn(4, 8), [], threading.Event()
    state = torch.get_rng_state()
    network = optimize_for_inference(model, x)
    assert torch.equal(torch.get_rng_state(), state)

    def serve():
        while not stop.is_set():
            found.append(network(x))

    def optimise():
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
        assert_close(optimize_for_inference(model, x)(x), call(model, x), 1e-5)

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        serving = pool.submit(serve)
        try:
            for future in [pool.submit(optimise) for _ in range(3)]:
                future.result()
        finally:
            stop.set()
        serving.result()
    assert len(found) > 1 and not torch.compiler.is_exporting()
