"""What processes make for a while goes with them, or with whoever comes next."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from trt_layermerge.core.jsonio import MAX_FILE_BYTES, read_small, regular, write_bytes
from trt_layermerge.core.scratch import clear_files, file_prefix, running, scratch, scratch_folder


def dead() -> int:
    """Returns the number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_unfinished_files_of_killed_processes_go_and_nothing_else(tmp_path: Path) -> None:
    gone, alive = dead(), os.getppid()
    left = [
        f".plan.json.trt-layermerge-{gone}.abcd_123",
        f"engines/.model.plan.trt-layermerge-{gone}.zzzzzzzz",
    ]
    kept = [
        f".plan.json.trt-layermerge-{alive}.abcd_123",
        f".plan.json.trt-layermerge-{gone}.abcd_123.bak",
        f"plan.json.trt-layermerge-{gone}.abcd_123",
        f".plan.json.other-{gone}.abcd_123",
        ".plan.json.trt-layermerge-x.abcd_123",
        ".vimrc",
        "plan.json",
    ]
    for name in [*left, *kept]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    clear_files(tmp_path)
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert found == set(kept)


KILLED = """
import os, signal, sys
from pathlib import Path
from trt_layermerge.core.jsonio import write_bytes
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
write_bytes(Path(sys.argv[1]), b"new")
"""


def test_a_killed_write_leaves_the_old_file_and_what_the_next_start_clears(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_bytes(path, b"old")
    subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2
    clear_files(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_long_names_are_written_too(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)
    write_bytes(path, b"x")
    assert list(tmp_path.iterdir()) == [path]
    assert len(file_prefix("n" * 250)) < 200


def test_temporary_folders_of_killed_processes_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = dead()
    left = tmp_path / f"trt-layermerge-{gone}-abcd_123"
    kept = [
        tmp_path / f"trt-layermerge-{os.getppid()}-abcd_123",
        tmp_path / f"trt-layermerge-{gone}-notes",
        tmp_path / "trt-layermerge-mine",
    ]
    for folder in (left, *kept):
        folder.mkdir()
        (folder / "file").write_text("")
    link = tmp_path / f"trt-layermerge-{gone}-link_123"
    link.symlink_to(kept[-1])
    with scratch() as own:
        assert own.is_dir() and own.parent == tmp_path
        assert scratch_folder().is_dir() and own.is_dir()
    assert not own.exists() and not left.exists()
    assert all((folder / "file").exists() for folder in kept) and link.is_symlink()


def test_who_is_running() -> None:
    assert running(os.getppid()) and running(1)
    assert not running(dead()) and not running(os.getpid()) and not running(2**70)


def test_only_files_that_end_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="it is a pipe or a device"):
            regular(path)
    assert regular(tmp_path) == tmp_path and regular(tmp_path / "none")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(MAX_FILE_BYTES)
    with pytest.raises(OSError, match="it has 268,435,456 bytes, and 1,048,576 at most are read"):
        read_small(tmp_path / "large")
