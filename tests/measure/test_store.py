"""The store: durable, idempotent, shared, and honest about damage."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from trt_layermerge.core.conv import AddSpec
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.core.tables import LatencyEntry
from trt_layermerge.errors import CorruptInputError, DeviceError
from trt_layermerge.measure.store import LatencyStore

DEVICE = DeviceInfo("fake", "1", "here", "1 thread")
SPEC = AddSpec(3, 5, 4, "relu")
ENTRY = LatencyEntry(0.25, 0.24, 0.3, 40)


def test_a_row_comes_back_exactly_and_the_first_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "latency.sqlite"
    with LatencyStore(path, DEVICE) as store:
        assert store.get(SPEC, "fp32", 1) is None
        store.put([(SPEC, ENTRY)], "fp32", 1)
        store.put([(SPEC, LatencyEntry(9.0, 9.0, 9.0, 9))], "fp32", 1)
    with LatencyStore(path, DEVICE) as store:
        assert store.get(SPEC, "fp32", 1) == ENTRY


def test_every_part_of_the_key_separates(tmp_path: Path) -> None:
    path = tmp_path / "latency.sqlite"
    with LatencyStore(path, DEVICE) as store:
        store.put([(SPEC, ENTRY)], "fp32", 1)
        assert store.get(AddSpec(3, 5, 4), "fp32", 1) is None
        assert store.get(SPEC, "fp16", 1) is None
        assert store.get(SPEC, "fp32", 2) is None
    with LatencyStore(path, DEVICE, "agent 1") as store:
        assert store.get(SPEC, "fp32", 1) is None
    for other in (
        DeviceInfo("torch", "1", "here", "1 thread"),
        DeviceInfo("fake", "2", "here", "1 thread"),
        DeviceInfo("fake", "1", "there", "1 thread"),
        DeviceInfo("fake", "1", "here", "2 threads"),
    ):
        with LatencyStore(path, other) as store:
            assert store.get(SPEC, "fp32", 1) is None


def specs(count: int) -> list[AddSpec]:
    return [AddSpec(channels + 1, 2, 3) for channels in range(count)]


def read_all(path: Path, count: int) -> list[LatencyEntry | None]:
    """Opens the store and reads rows, adding one: everything that a command may do."""
    with LatencyStore(path, DEVICE) as store:
        found = [store.get(spec, "fp32", 1) for spec in specs(count)]
        store.put([(SPEC, ENTRY)], "fp32", 1)
    return found


@pytest.mark.parametrize("mutation", ["flip", "cut", "zero"])
def test_damage_is_reported_or_leaves_right_values(tmp_path: Path, mutation: str) -> None:
    """300 mutations of a real file; nothing but our own error, and no wrong number, comes out."""
    path = tmp_path / "latency.sqlite"
    with LatencyStore(path, DEVICE) as store:
        store.put([(spec, ENTRY) for spec in specs(12)], "fp32", 1)
    intact = path.read_bytes()
    rng = random.Random(mutation)
    refused = 0
    for _ in range(100):
        damaged = bytearray(intact)
        position = rng.randrange(len(damaged))
        if mutation == "flip":
            damaged[position] ^= 1 << rng.randrange(8)
        elif mutation == "cut":
            del damaged[position:]
        else:
            damaged[position : position + 64] = bytes(len(damaged[position : position + 64]))
        path.write_bytes(damaged)
        try:
            assert set(read_all(path, 12)) <= {ENTRY, None}
        except CorruptInputError as error:
            refused += 1
            assert str(path) in str(error)
            assert "delete" in str(error)
    assert refused > 20


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latency.sqlite"
    path.write_text("these are not the bytes of a data base " * 100)
    with pytest.raises(CorruptInputError, match="delete"):
        LatencyStore(path, DEVICE)


def test_a_folder_in_its_place_is_a_device_error(tmp_path: Path) -> None:
    (tmp_path / "latency.sqlite").mkdir()
    with pytest.raises(DeviceError, match=r"latency\.sqlite"):
        LatencyStore(tmp_path / "latency.sqlite", DEVICE)
    (tmp_path / "file").touch()
    with pytest.raises(DeviceError, match="file"):
        LatencyStore(tmp_path / "file" / "latency.sqlite", DEVICE)


WRITER = """
import sys
from pathlib import Path
from trt_layermerge.core.conv import AddSpec
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.core.tables import LatencyEntry
from trt_layermerge.measure.store import LatencyStore
with LatencyStore(Path(sys.argv[1]), DeviceInfo("fake", "1", "here", "1 thread")) as store:
    for channels in range(int(sys.argv[2])):
        store.put([(AddSpec(channels + 1, 2, 3), LatencyEntry(0.25, 0.24, 0.3, 40))], "fp32", 1)
        print(channels, flush=True)
"""


def writer(path: Path, count: int) -> subprocess.Popen[str]:
    code = textwrap.dedent(WRITER)
    command = [sys.executable, "-c", code, str(path), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "latency.sqlite"
    writers = [writer(path, 40), writer(path, 40)]
    for process in writers:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert read_all(path, 40) == [ENTRY] * 40
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT COUNT(*) FROM latency").fetchone() == (41,)
    connection.close()


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_killed_writer_loses_nothing_that_was_written(tmp_path: Path) -> None:
    path = tmp_path / "latency.sqlite"
    for kill in range(5):
        process = writer(path, 100000)
        assert process.stdout is not None
        written = [process.stdout.readline() for _ in range(10 + 7 * kill)]
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        count = int(written[-1]) + 1
        assert read_all(path, count) == [ENTRY] * count


def test_damage_that_is_no_text_is_damage(tmp_path: Path) -> None:
    """Python fails to decode what SQLite says of it."""
    path = tmp_path / "latency.sqlite"
    with LatencyStore(path, DEVICE) as store:
        store.put([(SPEC, ENTRY)], "fp32", 1)
    content = path.read_bytes()
    assert content.count(b"WITHOUT ROWID") == 1
    path.write_bytes(content.replace(b"WITHOUT ROWID", b"WITHOUT ROWI\xfa"))
    with pytest.raises(CorruptInputError, match="damaged"), LatencyStore(path, DEVICE) as store:
        store.get(SPEC, "fp32", 1)
