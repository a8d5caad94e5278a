"""Files of public data sets: verified against their published size and checksum, downloaded only when asked."""

import hashlib
import os
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Report = Callable[[int, int], None]
_BLOCK = 1 << 20


@dataclass(frozen=True)
class DataFile:
    """A file as its makers published it: name, bytes (0: not known), md5 and, where it has one, its address."""

    name: str
    size: int
    md5: str
    url: str = ""


class MissingData(ValueError):
    """A data file is not there; the message says which and where to put it."""


def read_verified(path: Path, expected: DataFile) -> bytes:
    """The bytes of a file, verified."""
    raw = path.read_bytes()
    verify(path, raw, expected)
    return raw


def verify(path: Path, raw: bytes, expected: DataFile) -> None:
    """ValueError where the size is wrong, one warning where the size is right and the checksum another."""
    if expected.size and len(raw) != expected.size:
        raise ValueError(f"{path}: {len(raw)} bytes, expected {expected.size}; the file is truncated or is another one")
    found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    if found != expected.md5:
        warnings.warn(
            f"{path}: md5 is {found}, the published file has {expected.md5}; its contents differ, going on with it",
            stacklevel=2,
        )


def missing(path: Path, where: str, download: bool = True) -> MissingData:
    """The one sentence for a file that is not there."""
    hint = ", or fetch it with --download" if download else ""
    return MissingData(f"{path} is missing; put {where} there{hint}")


def fetch(file: DataFile, folder: Path, report: Report | None = None) -> Path:
    """Download into folder/name: written beside under a temporary name, verified, then renamed.

    report(done, total) is called as bytes arrive. A download whose size or checksum differs is deleted and refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file.name
    partial = path.with_name(path.name + ".part")
    digest, done = hashlib.md5(usedforsecurity=False), 0
    try:
        with urllib.request.urlopen(file.url, timeout=60) as response, partial.open("wb") as out:
            while block := response.read(_BLOCK):
                out.write(block)
                digest.update(block)
                done += len(block)
                if report is not None:
                    report(done, file.size)
        if (done, digest.hexdigest()) != (file.size, file.md5):
            raise ValueError(
                f"{file.url}: got {done} bytes with md5 {digest.hexdigest()}, expected {file.size} with {file.md5}"
            )
        os.replace(partial, path)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise MissingData(f"{path} is missing and {file.url} cannot be fetched ({reason}); put it there") from None
    finally:
        partial.unlink(missing_ok=True)
    return path
