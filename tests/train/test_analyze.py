"""Records for `sparse-ops analyze`: a bit a weight, the same after a resume, and the page made of them."""

import itertools
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from sparse_ops import cli
from sparse_ops.masks import PackedMask
from sparse_ops.train import analyze, run_folder
from sparse_ops.train.job import Job, Options
from sparse_ops.train.loop import Stopped
from sparse_ops.train.progress import Plain
from sparse_ops.train.recipe import parse
from sparse_ops.train.recorder import Recorder
from sparse_ops.train.run_folder import RunFolder

pytest.importorskip("sklearn")
pytestmark = pytest.mark.filterwarnings("ignore:.*lose.*:UserWarning")

TABLE = {
    "data": {"name": "digits", "batch_size": 256},
    "network": {"name": "mlp", "width": 24},
    "method": {
        "name": "art",
        "sparsity": 0.9,
        "pretrain_epochs": 2,
        "max_regularize_epochs": 1,
        "finetune_epochs": 2,
        "exclude": ["7"],
    },
    "training": {"analyze": True, "oneshot": False},
}
PRUNABLE = 64 * 24 + 24 * 24


def job(path, table=TABLE, **options):
    return Job(parse(table), Options(run=path, **options), Plain())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "whole"
    job(path).run()
    return path


def test_what_is_recorded(run):
    metrics = list(RunFolder(run).metrics())
    files = sorted((run / "analysis").rglob("*.pt"))
    assert len(files) == len(metrics) == 10
    for record in metrics:
        state = run_folder.load_state(run / "analysis" / record["stage"] / f"{record['epoch']:05d}.pt")
        assert state["epoch"] == record["epoch"] and state["phase"] == record["phase"]
        assert state["shapes"] == {"1.weight": [24, 64], "4.weight": [24, 24]}  # the classifier is excluded
        assert sum(state["kept"].values()) == PRUNABLE - round(0.9 * PRUNABLE)
        assert sum(bits.numel() for bits in state["masks"].values()) == PRUNABLE // 8
        assert sum(state["images"]) == 360 and len(state["images"]) == 10
        assert sum(state["right"]) / 360 == record["test_accuracy"]
        live = sum(state["magnitudes"]["counts"])
        assert live == PRUNABLE - state["magnitudes"]["zeros"] and state["threshold"] > 0
        if record["phase"] == "finetune":
            assert state["zeros"] == {
                name: n - state["kept"][name] for name, n in (("1.weight", 1536), ("4.weight", 576))
            }
    assert max(file.stat().st_size for file in files) < 10_000


def test_survivors_are_the_largest_magnitudes(tmp_path):
    """Against a sort, for weights without and with zeros, in a run's first epoch and under a mask."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(7, 5), torch.nn.Linear(5, 3))
    recipe = parse(TABLE | {"method": {"name": "art", "sparsity": 0.6}})
    recorder = Recorder(tmp_path, "fold0-art", model, recipe)
    recorder.write(1, "pretrain", model, None)
    state = run_folder.load_state(tmp_path / "analysis" / "fold0-art" / "00001.pt")
    weights = {"1.weight": model[1].weight, "2.weight": model[2].weight}
    magnitudes = torch.cat([w.detach().abs().flatten() for w in weights.values()])
    threshold = magnitudes.sort().values[30]  # 0.6 of 50 weights are 30 zeros
    assert state["threshold"] == float(threshold) and state["right"] is None
    for name, w in weights.items():
        mask = PackedMask(state["masks"][name], w.shape, w.stride()).to_dense()
        assert torch.equal(mask, w.detach().abs() >= threshold)


def test_overlap_counts_common_bits_without_padding():
    rng = np.random.default_rng(0)
    a, b = (torch.tensor(rng.random(1003) < share) for share in (0.3, 0.6))
    packed = [PackedMask.from_dense(mask).bits.numpy() for mask in (a, b)]
    assert analyze.overlap(*packed, padding=-1003 % 8) == int((a & b).sum())


def test_the_numbers(run):
    """Overlaps from the records by set arithmetic."""
    art, dense = analyze.read(run)
    assert (art.name, dense.name, art.epochs) == ("art", "dense", [1, 2, 3, 4, 5])
    states = [run_folder.load_state(file) for file in sorted((run / "analysis" / "fold0-art").glob("*.pt"))]
    sets = [
        {
            (name, i)
            for name, bits in state["masks"].items()
            for i in np.flatnonzero(np.unpackbits(bits.numpy(), bitorder="little"))
        }
        for state in states
    ]
    k = PRUNABLE - round(0.9 * PRUNABLE)
    assert art.overlap_last == [len(s & sets[-1]) / k for s in sets]
    assert art.overlap_previous[1:] == [len(a & b) / k for a, b in itertools.pairwise(sets)]
    assert art.matrix == [[len(a & b) / k for a in sets] for b in sets] and art.matrix_epochs == art.epochs
    assert art.overlap_last[-2:] == [1, 1] and art.overlap_last[0] < 1  # the mask of the fine-tuning is fixed
    assert [sum(layer) for layer in zip(*art.kept, strict=True)] == [k] * 5
    assert art.sparsity == pytest.approx(1 - k / PRUNABLE)


def test_resuming_records_the_same(run, tmp_path):
    path = tmp_path / "halves"
    with pytest.raises(Stopped):
        job(path, max_epochs=3).run()
    job(path, resume=True).run()
    for file in sorted((run / "analysis").rglob("*.pt")):
        a, b = (run_folder.load_state(f) for f in (file, path / file.relative_to(run)))
        assert all(torch.equal(a["masks"][name], b["masks"][name]) for name in a["masks"])
        assert {k: v for k, v in a.items() if k != "masks"} == {k: v for k, v in b.items() if k != "masks"}


def test_the_page_stands_alone(run, capsys):
    pytest.importorskip("matplotlib")
    assert cli.main(["analyze", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "analysis.html")
    page = (run / "analysis.html").read_text()
    text = re.sub(r'"data:image/png;base64,[^"]*"', '""', page)
    assert not re.search(r"https?:|//|<script|<link|<img|@import|url\((?!#)", text)
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) == 5
    for picture in pictures:
        ElementTree.fromstring(picture)
    assert "211 of 2,112" in page and "Two random sets would share 9.99 %" in page
    numbers = json.loads((run / "analysis.json").read_text())
    assert numbers["art"]["overlap_last"][-1] == 1 and numbers["dense"]["layers"] == ["1", "4"]


def test_without_looks_at_the_test_images(tmp_path):
    pytest.importorskip("matplotlib")
    training = {"analyze": True, "oneshot": False, "dense": False, "test_every": 100}
    job(tmp_path / "run", TABLE | {"training": training}).run()
    assert analyze.write(tmp_path / "run").read_text().count("<svg") == 4


def test_only_on_request(tmp_path, capsys):
    job(tmp_path / "run", TABLE | {"training": {"oneshot": False, "dense": False}}).run()
    assert not (tmp_path / "run" / "analysis").exists()
    assert cli.main(["analyze", str(tmp_path / "run")]) == 2
    assert "holds no records to analyze; train with --set training.analyze=true" in capsys.readouterr().err


def test_a_damaged_record_is_named(run, tmp_path):
    path = tmp_path / "analysis" / "fold0-art"
    path.mkdir(parents=True)
    (path / "00001.pt").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"00001.pt is damaged or no checkpoint"):
        analyze.write(tmp_path)
