"""make: what pip writes is hidden while it works, kept in a file, and shown where it fails."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

# Stands for python: `-m venv DIR` puts a copy of itself into DIR; everything else is pip, noisy and with the exit code
# that $PIP_CODE says.
PYTHON = """#!/bin/sh
if [ "$2" = venv ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; exit; fi
echo "WARNING: an index does not answer" >&2
exit ${PIP_CODE:-0}
"""


def make(tmp_path, pip_code):
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    venv = tmp_path / "venv"
    command = ["make", f"PYTHON={python}", f"VENV={venv}", f"{venv}/.requirements"]
    environment = {"PATH": os.environ["PATH"], "PIP_CODE": str(pip_code)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True), venv


def test_pip_is_quiet_while_it_works(tmp_path):
    done, venv = make(tmp_path, 0)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout + done.stderr and "installing torch" in done.stdout
    assert "an index does not answer" in (venv / "install.log").read_text()
    assert (venv / ".requirements").exists()


def test_what_pip_says_is_shown_where_it_fails(tmp_path):
    done, venv = make(tmp_path, 1)
    assert done.returncode != 0 and "an index does not answer" in done.stderr
    assert not (venv / ".requirements").exists()
