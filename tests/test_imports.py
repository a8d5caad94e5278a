"""The import law of docs/architecture.md, walked over the syntax trees."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOOR_2 = {"ops", "reference", "formats", "checks", "launch", "layouts", "tables", "extension", "recycling"}
FLOOR_2 |= {"replacing", "_version"}
FLOOR_3 = {"optim", "nn", "masks", "prunable", "planning", "files", "encodings", "inference"}
FLOOR_4 = {"methods"}
FLOOR_5 = {"train", "cli", "__main__", "integrations"}

# room: the rooms of sparse_ops that it may import
LAW = {
    "kernels": {"kernels"},
    "reference": {"reference"},
    "checks": set(),
    "layouts": set(),
    "extension": set(),
    "launch": {"extension"},
    "tables": set(),
    "recycling": set(),
    "replacing": set(),
    "formats": {"checks", "extension"},
    "ops": {
        "kernels",
        "extension",
        "reference",
        "checks",
        "launch",
        "tables",
        "formats",
        "layouts",
        "recycling",
        "ops",
    },
    **dict.fromkeys(FLOOR_3, (FLOOR_2 | FLOOR_3) - {"extension"}),
    "methods": {"methods", "masks", "formats", "prunable", "planning", "optim", "nn"},
    **dict.fromkeys(FLOOR_5, FLOOR_2 | FLOOR_3 | FLOOR_4 | FLOOR_5),
}


def imports(path: Path):
    """(line, absolute module name) of every import statement, also inside functions."""
    package = ("sparse_ops", *path.relative_to(ROOT / "sparse_ops").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            if module in {
                "sparse_ops",
                "sparse_ops.ops",
                "sparse_ops.kernels",
                "sparse_ops.reference",
                "sparse_ops.methods",
            }:
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def files():
    for path in sorted((ROOT / "sparse_ops").rglob("*.py")):
        yield path
    for path in sorted((ROOT / "kernels").glob("*.py")):
        yield ROOT / "sparse_ops" / "kernels" / path.name


FILES = sorted(set(files()))


def room(path: Path) -> str:
    return path.relative_to(ROOT / "sparse_ops").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_import_law(path):
    here = room(path)
    if here in {"__init__", "_version"}:
        return
    assert here in LAW, f"{path}: a room that docs/architecture.md does not know"
    for line, module in imports(path):
        top, _, rest = module.partition(".")
        where = f"{path.relative_to(ROOT)}:{line}"
        if top == "sparse_ops" and rest:
            target = rest.split(".")[0]
            assert target in LAW[here] | {"_version"}, f"{where}: {here} imports {module}"
        if here == "kernels":
            assert top in {"triton", "sparse_ops", "__future__"}, f"{where}: a kernel imports {module}"
        if here == "reference":
            assert top in {"torch", "math", "collections", "sparse_ops", "__future__"}, f"{where}: imports {module}"
        assert top != "triton" or here in {"kernels", "cli"}, f"{where}: {here} imports triton"


def test_there_are_files_to_walk():
    assert len(FILES) > 12
    assert any(room(p) == "kernels" for p in FILES)


def test_methods_hold_no_arithmetic_on_weights():
    for path in (ROOT / "sparse_ops" / "methods").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"mul_", "add_", "sub_", "div_", "masked_fill_", "clamp_"}, (
                    f"{path.relative_to(ROOT)}:{node.lineno} {node.attr}"
                )


def test_ops_hold_no_triton_language():
    for path in (ROOT / "sparse_ops" / "ops").glob("*.py"):
        assert "tl." not in path.read_text().replace("ctl.", ""), path


def test_import_needs_torch_and_numpy_alone():
    """In a fresh interpreter, importing the package loads none of the optional packages."""
    code = (
        "import sys, sparse_ops; "
        "print([m for m in ('triton', 'sklearn', 'rich', 'matplotlib', 'safetensors', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded_by_torch = subprocess.run(
        [sys.executable, "-c", code.replace(", sparse_ops", ", torch")], capture_output=True, text=True, check=True
    )
    assert done.stdout == loaded_by_torch.stdout


def test_kernels_folder_is_one_and_linked():
    assert (ROOT / "sparse_ops" / "kernels").resolve() == ROOT / "kernels"
    assert not (ROOT / "kernels" / "__init__.py").exists()
