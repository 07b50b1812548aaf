"""Files and folders for a while, named after the process that made them, so that none outlives it.

A process that is killed cannot tidy up. Whoever comes next finds whose it was in the name, and
removes what no running process has; nothing else is touched.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FILE = re.compile(r"\..*\.trt-layermerge-(\d+)\.[a-z0-9_]{8}")
_FOLDER = re.compile(r"trt-layermerge-(\d+)-[a-z0-9_]{8}")


def running(pid: int) -> bool:
    """Whether another process of this number is running."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def file_prefix(name: str) -> str:
    """Returns how a file begins that is to replace another one of that name."""
    return f".{name[:100]}.trt-layermerge-{os.getpid()}."


def clear_files(folder: Path) -> None:
    """Removes what killed processes have left below a folder in the place of finished files."""
    for path in folder.rglob(".*.trt-layermerge-*"):
        found = _FILE.fullmatch(path.name)
        if found is not None and not running(int(found[1])) and path.is_file():
            with suppress(OSError):
                path.unlink()


def scratch_folder() -> Path:
    """Returns a new folder among the system's temporary ones; those of killed processes go."""
    where = Path(tempfile.gettempdir())
    with suppress(OSError):
        for path in where.glob("trt-layermerge-*"):
            found = _FOLDER.fullmatch(path.name)
            if found is None or running(int(found[1])) or int(found[1]) == os.getpid():
                continue
            if not path.is_symlink() and path.stat().st_uid == os.getuid():
                shutil.rmtree(path, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"trt-layermerge-{os.getpid()}-", dir=where))


@contextmanager
def scratch() -> Iterator[Path]:
    """Yields such a folder, and removes it."""
    folder = scratch_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
