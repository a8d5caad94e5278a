"""docs/api.md: every public name is on it, its signatures are the real ones, and its examples run as they stand."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
MODULES = ["sparse_ops", "sparse_ops.optim", "sparse_ops.methods", "sparse_ops.nn"]


def section(module):
    """The text under the heading of a module."""
    (text,) = re.findall(rf"^## {re.escape(module)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), flags=re.S | re.M)
    return text


def entries(module):
    """Name -> its signature on the page, or None: what stands as **`name(...)`**."""
    found = re.findall(r"\*\*`(\w+)(\([^`]*\))?`\*\*", section(module))
    return {name: signature or None for name, signature in found}


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_on_the_page(module):
    missing = set(importlib.import_module(module).__all__) - set(entries(module))
    assert not missing


@pytest.mark.parametrize("module", MODULES)
def test_signatures_are_the_real_ones(module):
    """Every parameter that the page names exists, with the default that the page says; required ones are named."""
    for name, text in entries(module).items():
        if text is None:
            continue
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        arguments = ast.parse(f"def f{text}: pass").body[0].args
        positional = arguments.posonlyargs + arguments.args
        shown = dict.fromkeys((a.arg for a in positional), inspect.Parameter.empty)
        optional = positional[len(positional) - len(arguments.defaults) :]
        shown |= {a.arg: ast.literal_eval(d) for a, d in zip(optional, arguments.defaults, strict=True)}
        keywords = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        shown |= {a.arg: inspect.Parameter.empty if d is None else ast.literal_eval(d) for a, d in keywords}
        for argument, default in shown.items():
            assert argument in parameters and parameters[argument].default == default, f"{name}: {argument}={default}"
        required = {p.name for p in parameters.values() if p.default is inspect.Parameter.empty}
        assert required <= set(shown), name


def test_every_member_and_argument_of_a_sparsifier_is_on_the_page():
    from sparse_ops.methods import Sparsifier

    text = section("sparse_ops.methods")
    ours = [c for c in Sparsifier.__mro__ if c.__module__.startswith("sparse_ops.")]
    members = {
        n
        for c in ours
        for n, v in vars(c).items()
        if not n.startswith("_") and (callable(v) or isinstance(v, property | classmethod))
    }
    arguments = set(inspect.signature(Sparsifier).parameters) - {"model", "optimizer"}
    assert len(members) > 18 and len(arguments) > 7
    absent = [n for n in members if f"`{n}`" not in text and f"`{n}(" not in text]
    absent += [n for n in arguments if f"`{n}=`" not in text and f"`{n}`" not in text]
    assert not absent


@pytest.mark.filterwarnings("ignore::sparse_ops.methods.collapse.CollapseWarning")
def test_the_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S):
        exec(code, scope)
    out = capsys.readouterr().out
    assert "regularize is over after epoch" in out and "OK: the hash is right" in out
    x, sparse = scope["x"], scope["sparse"]
    torch.testing.assert_close(scope["again"](x), sparse(x), rtol=0, atol=0)
    assert scope["accuracy"](sparse) > 0.8
    assert [type(m).__name__ for m in sparse if hasattr(m, "bias")] == ["SparseLinear", "SparseLinear", "Linear"]


def test_the_page_names_every_metric():
    """The keys that metrics() gave in the phase with a penalty are the rows of its table."""
    scope = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    for code in blocks[:2]:
        exec(code, scope)
    model, optimizer, sparsifier = scope["start"]()
    scope["train"](model, optimizer, sparsifier, epochs=4)
    assert sparsifier.phase == "regularize"
    table = section("sparse_ops.methods").split("### What metrics() says")[1]
    assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.M)) == set(sparsifier.metrics())
