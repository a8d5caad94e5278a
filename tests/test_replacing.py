"""A file takes the place of another as a whole, keeps its permissions, and a link stays a link."""

import os
import resource
import signal

import pytest
import torch
from torch import nn

import sparse_ops
from sparse_ops.replacing import replaced


def test_permissions_and_links_stay(tmp_path):
    (tmp_path / "own").write_text("before")
    (tmp_path / "own").chmod(0o640)
    (tmp_path / "link").symlink_to("own")
    with replaced("save", tmp_path / "link") as beside:
        assert beside.parent == tmp_path and (tmp_path / "own").read_text() == "before"
        beside.write_text("after")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "own").read_text() == "after"
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["link", "own"]


def test_an_error_leaves_the_old_file(tmp_path):
    (tmp_path / "own").write_text("before")
    with pytest.raises(KeyboardInterrupt), replaced("save", tmp_path / "own") as beside:
        beside.write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "own").read_text() == "before" and os.listdir(tmp_path) == ["own"]


@pytest.mark.parametrize("name", ["network.pt2", "model.safetensors"])
def test_what_is_no_file_is_not_replaced(name, tmp_path):
    path, model = tmp_path / name, nn.Linear(4, 3).eval()
    os.mkfifo(path)
    with pytest.raises(OSError, match="is no regular file, and would be replaced by one"):
        sparse_ops.save(model, path) if name.startswith("model") else sparse_ops.export(model, torch.randn(2, 4), path)
    assert path.is_fifo()


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on the size of files")
@pytest.mark.parametrize("name", ["network.pt2", "model.safetensors"])
def test_a_full_disk_is_an_error_with_the_path(name, tmp_path):
    path, model, x = tmp_path / name, nn.Linear(80, 800).eval(), torch.randn(2, 80)
    write = sparse_ops.save if name.startswith("model") else lambda m, p: sparse_ops.export(m, x, p)
    write(model, path)
    before, handler = path.read_bytes(), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=name):
            write(model, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before and os.listdir(tmp_path) == [name]
