"""Files that are written beside their name and then renamed, so that no file is ever half written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(op: str, path: Path) -> Iterator[Path]:
    """The name to write to, in the same folder; it takes the place of `path` where the body ends without an error.

    A link stays one, what it points to is replaced; a file that is replaced keeps its permissions. Raises OSError that
    names `path` where that is no regular file, or cannot be written.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OSError(f"{op}: {path} is no regular file, and would be replaced by one")
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        beside.touch()
        mode = (target if target.exists() else beside).stat().st_mode  # a new one's is as the umask wants it
        yield beside
        beside.chmod(mode & 0o7777)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(target)
    except OSError as error:
        if error.errno is None or error.filename not in (None, os.fspath(beside)):
            raise
        raise type(error)(error.errno, f"{op}: {error.strerror}", os.fspath(path)) from error
    finally:
        beside.unlink(missing_ok=True)
