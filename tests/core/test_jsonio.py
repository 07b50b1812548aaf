"""Files are whole or refused: truncated, mutated, half-written, on a full or closed disk."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trt_layermerge.core import jsonio
from trt_layermerge.core.jsonio import (
    append_line,
    damage,
    read_json,
    read_lines,
    sha256_file,
    sha256_json,
    write_bytes,
    write_json,
    write_lines,
    write_text,
)
from trt_layermerge.errors import CorruptInputError, DeviceError, UsageError

ROWS: list[dict[str, Any]] = [{"n": 1, "text": "ä\n"}, {"n": 2}, {"n": 3, "deep": [[{}]]}]


def test_json_comes_back_with_its_schema(tmp_path: Path) -> None:
    path = tmp_path / "new" / "plan.json"
    write_json(path, "plan", {"a": [1, 2.5, None]})
    assert read_json(path, "plan") == {"schema": "trt-layermerge/plan@1", "a": [1, 2.5, None]}


def test_every_truncation_of_a_json_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_json(path, "plan", {"a": [1, 2], "b": "ü"})
    whole = path.read_bytes()
    for size in range(len(whole) - 1):  # the last byte is the line end
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptInputError, match=r"plan\.json is damaged"):
            read_json(path, "plan")


def test_every_truncation_of_a_table_loses_at_most_the_last_row(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    write_lines(path, "table", {"by": "hand"}, ROWS)
    whole = path.read_bytes()
    header_size = whole.index(b"\n") + 1
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        if size < header_size:
            with pytest.raises(CorruptInputError):
                read_lines(path, "table")
        else:
            header, rows = read_lines(path, "table")
            assert header["by"] == "hand"
            assert rows == ROWS[: whole[header_size:size].count(b"\n")]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"[]\n",
        b"\xff\xfe\n",
        b'{"schema": "trt-layermerge/other@1"}\n',
        b'{"schema": "trt-layermerge/table@2"}\n',
        b'{"schema": "trt-layermerge/table@1"}\n{"n": 1\n',
        b'{"schema": "trt-layermerge/table@1"}\n7\n',
        b'{"schema": "trt-layermerge/table@1"}\n' + b"[" * 100_000 + b"\n",
    ],
)
def test_damaged_tables_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "table.jsonl"
    path.write_bytes(content)
    with pytest.raises(CorruptInputError, match=r"table\.jsonl is damaged"):
        read_lines(path, "table")


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.jsonl"
    write_lines(path, "table", {}, ROWS)
    monkeypatch.setattr(jsonio, "MAX_FILE_BYTES", path.stat().st_size - 1)
    with pytest.raises(CorruptInputError, match="larger than"):
        read_lines(path, "table")


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        read_json(tmp_path / "plan.json", "plan")
    with pytest.raises(UsageError, match="cannot read"):
        sha256_file(tmp_path / "plan.json")


def test_a_row_after_a_half_written_one_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    write_lines(path, "table", {}, ROWS[:1])
    whole = path.read_bytes()
    half = json.dumps(ROWS[1]).encode()
    for size in range(len(half) + 1):
        path.write_bytes(whole + half[:size])
        append_line(path, ROWS[2])
        assert read_lines(path, "table")[1] == [ROWS[0], ROWS[2]]


def test_a_half_written_row_longer_than_one_read_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    write_lines(path, "table", {}, ROWS[:1])
    with path.open("ab") as file:
        file.write(b"x" * 200_000)
    append_line(path, ROWS[1])
    assert read_lines(path, "table")[1] == ROWS[:2]


def test_appending_to_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"cannot append to .*table\.jsonl"):
        append_line(tmp_path / "table.jsonl", {})


WRITERS: list[Callable[[Path], None]] = [
    lambda path: write_bytes(path, b"new"),
    lambda path: write_text(path, "new"),
    lambda path: write_json(path, "plan", {"new": True}),
    lambda path: write_lines(path, "table", {}, [{"new": True}]),
]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("step", ["fsync", "fdopen"])
def test_a_full_disk_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None], step: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(handle: int, *_: object) -> None:
        if step == "fdopen":
            os.close(handle)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"trt_layermerge.core.jsonio.os.{step}", full)
    with pytest.raises(DeviceError, match=r"cannot write .*file: No space left.*--runs-dir"):
        write(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interruption_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trt_layermerge.core.jsonio.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", WRITERS)
def test_a_path_through_a_file_is_refused(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(DeviceError, match="cannot write"):
        write(tmp_path / "file" / "inside.json")
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(DeviceError, match="cannot write"):
            write_text(tmp_path / "file", "new")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("error", [KeyError("a"), TypeError("b"), ValueError("c"), OverflowError()])
def test_damage_turns_errors_of_reading_into_one_refusal(error: Exception) -> None:
    with (
        pytest.raises(CorruptInputError, match=r"plan\.json is damaged.*delete the file"),
        damage(Path("plan.json")),
    ):
        raise error


def test_hashes_of_json_ignore_the_order_of_keys_only() -> None:
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1})
    assert sha256_json([1, 2]) != sha256_json([2, 1])
