"""What is built and shipped: the extension where there is a compiler, and a wheel with one top level."""

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sparse_ops import extension

ROOT = Path(__file__).resolve().parents[1]


def test_kernels_is_one_folder_under_two_names():
    link = ROOT / "sparse_ops" / "kernels"
    assert link.is_symlink() and os.readlink(link) == "../kernels"
    assert (link / "apply_masks.py").samefile(ROOT / "kernels" / "apply_masks.py")


@pytest.mark.skipif(
    shutil.which("c++") is None or (platform.system(), platform.machine()) != ("Linux", "x86_64"),
    reason="needs a C++ compiler on Linux x86_64",
)
def test_the_extension_is_built_where_there_is_a_compiler():
    assert extension.failure() is None


@pytest.mark.slow
def test_a_wheel_holds_one_package_and_a_stable_extension(tmp_path):
    if extension.failure() is not None:
        pytest.skip(extension.failure())
    config = tmp_path / "setup.cfg"  # objects that build/ holds are used again, files of an older build/lib are not
    config.write_text(f"[build]\nbuild_lib = {tmp_path / 'lib'}\n")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", tmp_path, ROOT]
    environment = os.environ | {"DIST_EXTRA_CONFIG": str(config)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "-cp311-abi3-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sparse_ops"}
    assert [name for name in names if name.endswith(".so")] == ["sparse_ops/_C.abi3.so"]
    kernels = {f"sparse_ops/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}
    assert kernels <= set(names) and "sparse_ops/py.typed" in names
