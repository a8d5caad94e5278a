"""The report from the files of a run: self-contained, made again from the files, with its figures in the text."""

import json
import re
from xml.etree import ElementTree

import pytest

from sparse_ops.train import plots, report, run_folder
from sparse_ops.train.run_folder import RunFolder

pytest.importorskip("matplotlib")


def histogram(center, threshold):
    counts = [int(1e5 * 2.0 ** -abs(i - center)) for i in range(120)]
    return {"lowest": -10, "bins_per_decade": 10, "counts": counts, "zeros": 3, "threshold": threshold}


def records(stage, phases):
    epoch = 1
    for phase, n in phases:
        for i in range(n):
            record = {
                "stage": f"fold0-{stage}",
                "epoch": epoch,
                "phase": phase,
                "test_accuracy": 1 - 0.4 / epoch,
                "pruned_accuracy": i / n if phase == "regularize" else None,
            }
            yield record | ({"lambda": 5e-5 * 1.2**i} if phase == "regularize" else {})
            epoch += 1


@pytest.fixture
def run(tmp_path):
    """The files of a run that never was."""
    folder = RunFolder(tmp_path / "run")
    folder.begin('seed = 0  # <script>alert("recipe")</script>\n', resume=False)
    for stage, phases in {
        "art": [("pretrain", 12), ("regularize", 20), ("finetune", 28)],
        "oneshot": [("pretrain", 32), ("finetune", 28)],
        "dense": [("dense", 60)],
    }.items():
        for record in records(stage, phases):
            folder.append_metrics(record)
    layers = [
        {"name": f"blocks.{i}.conv1", "shape": [64, 32, 3, 3], "weights": 18432, "nonzeros": i * 99} for i in range(9)
    ]
    magnitudes = {"dense": histogram(80, 0.06), "method": histogram(60, 1.2e-3)}
    folder.write_json(run_folder.FIGURES, {"magnitudes": magnitudes, "density": layers})
    summary = {
        "dense_accuracy": 0.9944,
        "sparse_accuracy": 0.9917,
        "oneshot_accuracy": 0.9861,
        "sparse_accuracy_per_fold": [0.9917],
        "epochs": 60,
        "sparsity": 0.98,
        "zeros": 300586,
        "prunable": 306720,
        "layers": [
            {"name": "stem", "sparse": False, "reason": "no zeros"},
            {"name": "conv1", "sparse": True, "reason": "2.10 times as fast"},
            {"name": "conv2", "sparse": False, "reason": "sparse is 0.80 times as fast"},
        ],
        "test_images": 360,
        "machine": "A Processor, 2 logical cores",
        "max_abs_difference_sparse_vs_masked": 2.9e-6,
        "dense_ms": 3.21,
        "sparse_ms": 1.07,
        "dense_bytes": 1_240_000,
        "sparse_bytes": 56_000,
        "timing": "batch 64, float32",
        "recipe": {"method": {"name": "art"}, "network": {"name": "resnet8"}, "data": {"name": "digits"}},
    }
    folder.write_json(run_folder.SUMMARY, summary)
    return folder


def test_the_page_stands_alone(run):
    page = report.write(run.path).read_text()
    assert not re.search(r"https?:|//|<script|<link|<img|@import|url\((?!#)", page)
    for element in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(element)
    assert page.count("<svg") == 4
    assert "6,134 of 306,720 weights" in page and "99.17 %" in page and "98.61 %" in page
    assert "3.0 times faster than dense" in page and "22.1 times" in page
    assert page == report.write(run.path).read_text()  # from the same files the same page


def test_the_page_says_what_ran_where_and_why(run):
    page = report.write(run.path).read_text()
    assert "1 of 3 layers run sparse; dense: stem, no zeros; conv2, sparse is 0.80 times as fast." in page
    assert "A Processor, 2 logical cores" in page and "all 360 test images" in page
    assert page.count("not converted") == 2  # one-shot has neither time nor file


def test_the_legend_of_the_densities_is_over_no_bar(run):
    layers = run.read_json(run_folder.FIGURES)["density"]
    layers[0]["nonzeros"] = layers[-1]["nonzeros"] = 18432
    figure = plots.density(layers, 0.02)
    figure.canvas.draw()
    axes = figure.axes[0]
    legend = axes.get_legend().get_window_extent()
    assert not any(legend.overlaps(bar.get_window_extent()) for bar in axes.patches)
    assert "100 %: 18,432 of 18,432" in [label.get_text() for label in axes.child_axes[0].get_yticklabels()]


def test_a_slower_network_is_called_slower(run):
    summary = run.read_json(run_folder.SUMMARY)
    run.write_json(run_folder.SUMMARY, summary | {"sparse_ms": 6.42})
    assert "2.0 times slower than dense" in report.write(run.path).read_text()


def test_without_rivals(run):
    figures = run.read_json(run_folder.FIGURES)
    del figures["magnitudes"]["dense"]
    run.write_json(run_folder.FIGURES, figures)
    summary = run.read_json(run_folder.SUMMARY)
    run.write_json(run_folder.SUMMARY, summary | {"dense_accuracy": None, "oneshot_accuracy": None})
    lines = [line for line in (run / run_folder.METRICS).read_text().splitlines() if "fold0-art" in line]
    (run / run_folder.METRICS).write_text("\n".join(lines) + "\n")
    page = report.write(run.path).read_text()
    assert "against 99.44 % dense" not in page and page.count("<svg") == 4
    run.write_json(run_folder.FIGURES, figures | {"magnitudes": {}})
    assert report.write(run.path).read_text().count("<svg") == 3


def test_text_table(run):
    lines = report.text_table(run.read_json(run_folder.SUMMARY)).splitlines()
    assert len(lines) == 5 and len({len(line) for line in lines[:2]}) == 1
    assert lines[3].startswith("ART + HyperSparse") and "6,134" in lines[3]


@pytest.mark.parametrize("name", [run_folder.SUMMARY, run_folder.FIGURES])
def test_missing_and_damaged_files_are_named(run, name):
    (run / name).write_text("{")
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        report.write(run.path)
    (run / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing: .* holds no finished run"):
        report.write(run.path)


def test_metrics_are_json_lines(run):
    assert all(json.loads(line)["stage"] for line in (run / run_folder.METRICS).read_text().splitlines())


def test_density_is_drawn_as_points_on_whole_decades():
    """A bar on a log axis has no honest length; a layer without weights, which has no place there, is marked apart."""
    nonzeros = [9, 0, 100, 1000]
    layers = [{"name": str(i), "shape": [10, 100], "weights": 1000, "nonzeros": n} for i, n in enumerate(nonzeros)]
    (axes,) = plots.density(layers, 0.02).axes
    lines = {line.get_label(): line for line in axes.lines}
    assert not axes.patches and axes.get_xscale() == "log" and axes.get_xlim()[0] == 0.1
    assert list(lines["one layer"].get_xdata()) == pytest.approx([0.9, 10, 100])
    assert list(lines["one layer"].get_ydata()) == [0, 2, 3]
    assert list(lines["no live weight"].get_ydata()) == [1]
    assert list(lines["all layers: 2 %"].get_xdata()) == [2, 2]


def test_a_penalty_of_one_epoch_is_seen():
    figure = plots.training({"ART": list(records("art", [("regularize", 1), ("finetune", 2)]))}, "ART")
    assert figure.axes[1].lines[0].get_marker() == "o" and figure.axes[1].lines[0].get_xdata() == [1]
    assert all(float(tick).is_integer() for tick in figure.axes[1].get_xticks())


def emptied(run):
    """The files of a run whose network has lost every weight, where 90 % zeros were asked for."""
    figures = run.read_json(run_folder.FIGURES)
    for layer in figures["density"]:
        layer["nonzeros"] = 0
    nothing = {"lowest": -10, "bins_per_decade": 10, "counts": [0] * 120, "zeros": 306720, "threshold": 0.0}
    run.write_json(run_folder.FIGURES, figures | {"magnitudes": {"method": nothing}})
    summary = run.read_json(run_folder.SUMMARY)
    summary["recipe"]["method"]["sparsity"] = 0.9
    summary |= {"zeros": 306720, "sparsity": 1.0, "sparse_accuracy": 0.1}
    run.write_json(run_folder.SUMMARY, summary)
    return summary


def test_a_network_without_any_weight_gets_its_report(run):
    summary = emptied(run)
    page = report.write(run.path).read_text()
    assert page.count("<svg") == 4 and "nan" not in re.findall(r"<svg.*?</svg>", page, re.DOTALL)[1]
    sentence = report.sentence(summary)
    assert "left none of 306,720 weights" in sentence and "(100.00 % zeros, where 90.00 % were asked for)" in sentence
    assert "its outputs do not depend on its input" in sentence and sentence.split("; no weight is left")[0] in page
    assert "faster" not in sentence and "smaller" not in sentence
    (density,) = plots.density(run.read_json(run_folder.FIGURES)["density"], 0.0).axes
    assert density.get_xlim() == (1, 130) and "one layer" not in [line.get_label() for line in density.lines]
    nothing = run.read_json(run_folder.FIGURES)["magnitudes"]["method"]
    (magnitudes,) = plots.magnitudes({"ART": nothing}, "ART").axes
    assert magnitudes.get_xlim() == pytest.approx((-10.2, 2.3))
    assert [text.get_text() for text in magnitudes.get_legend().get_texts()] == ["ART, before pruning"]
    method, rival = report.rows(summary)[2:]
    assert (method[2], rival[2]) == ("0", "-"), "the rival has met its budget"


@pytest.mark.parametrize(
    ("asked", "options", "missed"),
    [
        (0.98, {}, False),
        (0.9806, {}, True),
        (0.9794, {}, True),
        (0.9804, {}, False),
        (0.9796, {}, False),
        (0.9, {"exclude": ["stem"]}, False),
        (0.9, {"exclude": []}, True),
        ({"stem": 0.9}, {}, False),
    ],
)
def test_a_missed_sparsity_of_an_older_run_is_said_and_no_speed_advertised(run, asked, options, missed):
    """By more than 0.05 points, of 98.0001 %; where the budget is one of all the weights that are counted."""
    summary = run.read_json(run_folder.SUMMARY)
    summary["recipe"]["method"] |= {"sparsity": asked} | options
    sentence = report.sentence(summary)
    assert ("98.00 % zeros, where" in sentence and "it missed the sparsity that was asked for" in sentence) == missed
    assert ("faster than dense" in sentence) != missed


def test_what_is_missed_is_counted_over_the_weights_that_the_budget_covers(run):
    """With exclude= or a sparsity for each layer the share of all weights is another than what was asked for."""
    summary = run.read_json(run_folder.SUMMARY)
    summary["recipe"]["method"] |= {"sparsity": {"stem": 0.0, "*": 0.99}, "exclude": ["head"]}
    for zeros, found in ((297_000, None), (297_150, None), (297_151, "99.05 %"), (280_000, "93.33 %")):
        summary["asked"] = {"weights": 300_000, "wanted": 297_000, "zeros": zeros}
        sentence = report.sentence(summary)
        assert ("it missed the sparsity" in sentence) == (found is not None) != ("faster than dense" in sentence)
        if found is not None:
            assert f"98.00 % zeros, {found} of what the budget covers, where 99.00 % were asked for" in sentence
