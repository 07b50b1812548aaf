"""Tables from a scripted device: once each, resumable, failures spared."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.measure.networks import measured
from tests.measure.scripted import ScriptedBackend
from trt_layermerge.backends import Runner
from trt_layermerge.core.conv import AddSpec, ConvSpec, Spec
from trt_layermerge.errors import CorruptInputError, StickyDeviceError, UnsupportedModelError
from trt_layermerge.measure.store import LatencyStore
from trt_layermerge.measure.table import CHUNK_BYTES, CHUNK_SPECS, chunks

SPECS: list[Spec] = [
    ConvSpec(8, 8, (k, k), (1, 1), (k // 2,) * 4, (1, 1), 1, size, size, "relu")
    for k in (1, 3, 5)
    for size in range(4, 12)
]


def test_every_spec_is_measured_once(tmp_path: Path) -> None:
    backend = ScriptedBackend(name="one")
    seen: list[tuple[int, int]] = []
    table = measured(
        [*SPECS, *SPECS[:5]],
        backend,
        "fp32",
        2,
        tmp_path / "s",
        on_progress=lambda done, total: seen.append((done, total)),
        rounds=3,
    )
    assert sorted(backend.opened) == sorted(map(str, SPECS))
    assert [key[0] for key in table.entries] == SPECS
    assert seen[-1] == (len(SPECS), len(SPECS))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    first, last = table[SPECS[0], "fp32", 2], table[SPECS[-1], "fp32", 2]
    assert first < last
    entry = table.entries[SPECS[0], "fp32", 2]
    assert entry.error is None
    assert entry.samples >= 3
    assert table.device == backend.device()


def test_what_the_store_has_is_not_measured_again(tmp_path: Path) -> None:
    measured(SPECS[:10], ScriptedBackend(), "fp32", 1, tmp_path / "s", rounds=3)
    backend = ScriptedBackend(ms_per_gmac=1e6)
    table = measured(SPECS, backend, "fp32", 1, tmp_path / "s", rounds=3)
    assert sorted(backend.opened) == sorted(map(str, SPECS[10:]))
    assert table[SPECS[9], "fp32", 1] < table[SPECS[10], "fp32", 1] / 100


def test_failures_cost_infinity_and_are_tried_again(tmp_path: Path) -> None:
    broken, failing = str(SPECS[3]), str(SPECS[17])
    backend = ScriptedBackend(broken={broken: "no tactic"}, failing={failing: "out of memory"})
    table = measured(SPECS, backend, "fp32", 1, tmp_path / "s", rounds=3)
    errors = {str(k[0]): e.error for k, e in table.entries.items() if e.error}
    assert errors == {broken: "no tactic", failing: "out of memory"}
    assert table[SPECS[3], "fp32", 1] == table[SPECS[17], "fp32", 1] == math.inf
    assert sum(math.isfinite(e.ms) for e in table.entries.values()) == len(SPECS) - 2
    healthy = ScriptedBackend()
    again = measured(SPECS, healthy, "fp32", 1, tmp_path / "s", rounds=3)
    assert sorted(healthy.opened) == sorted([broken, failing])
    assert all(e.error is None for e in again.entries.values())


def test_a_hundred_failures_spare_the_others(tmp_path: Path) -> None:
    specs: list[Spec] = [AddSpec(c, 2, 2) for c in range(1, 202)]
    broken = {str(spec): f"no {spec}" for spec in specs[::2]}
    table = measured(specs, ScriptedBackend(broken=broken), "fp32", 1, tmp_path / "s", rounds=3)
    for number, (key, entry) in enumerate(table.entries.items()):
        assert entry.error == (None if number % 2 else f"no {key[0]}")
        assert math.isfinite(entry.ms) == bool(number % 2)


class Raising(ScriptedBackend):
    """Raises an error for every network with a kernel of five."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def open(self, model: bytes, *, seed: int = 0) -> Runner:
        if b"k5x5" in model:
            raise self.error
        return super().open(model, seed=seed)


def test_a_network_that_the_library_does_not_know_costs_one_entry(tmp_path: Path) -> None:
    """TensorRT's adapter tells such a network apart from a device that fails."""
    backend = Raising(UnsupportedModelError("no importer for Frobnicate"))
    table = measured(SPECS, backend, "fp32", 1, tmp_path / "s", rounds=3)
    for (spec, *_), entry in table.entries.items():
        assert (entry.error is not None) == ("k5x5" in str(spec))
        assert entry.error in (None, "no importer for Frobnicate")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("no kernel"), ZeroDivisionError("by zero"), OSError("x")]
)
def test_whatever_a_library_raises_costs_one_entry(tmp_path: Path, error: Exception) -> None:
    table = measured(SPECS, Raising(error), "fp32", 1, tmp_path / "s", rounds=3)
    said = f"{type(error).__name__}: {error}".removesuffix(": ")
    for (spec, *_), entry in table.entries.items():
        assert entry.error == (said if "k5x5" in str(spec) else None)
        assert math.isinf(entry.ms) == (entry.error is not None)


class Mistimed(ScriptedBackend):
    """Says an impossible time of every network with a kernel of five, from the third burst on."""

    def __init__(self, ms: float) -> None:
        super().__init__()
        self.ms = ms

    def open(self, model: bytes, *, seed: int = 0) -> Runner:
        runner = super().open(model, seed=seed)
        if b"k5x5" in model:
            right, bursts = runner.time_burst, iter(range(10**6))
            runner.time_burst = lambda count: (  # type: ignore[method-assign]
                right(count) if next(bursts) < 2 else [self.ms] * count
            )
        return runner


@pytest.mark.parametrize("ms", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_time_is_a_failure(tmp_path: Path, ms: float) -> None:
    table = measured(SPECS, Mistimed(ms), "fp32", 1, tmp_path / "s", rounds=3)
    for (spec, *_), entry in table.entries.items():
        assert (entry.error is not None) == ("k5x5" in str(spec))
        assert entry.error is None or f"took {ms} ms, which is no time" in entry.error
        assert math.isinf(entry.ms) == (entry.error is not None)


def test_a_process_that_lost_its_gpu_takes_no_network_for_broken(tmp_path: Path) -> None:
    with pytest.raises(StickyDeviceError, match="illegal access"):
        measured(
            SPECS, Raising(StickyDeviceError("illegal access")), "fp32", 1, tmp_path / "s", rounds=3
        )
    table = measured(SPECS, ScriptedBackend(), "fp32", 1, tmp_path / "s", rounds=3)
    assert all(entry.error is None for entry in table.entries.values())


def test_chunks_are_bounded_and_complete() -> None:
    heavy = [
        ConvSpec(2048, 2048, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 7, 7 + i) for i in range(4)
    ]
    parts = list(chunks([*SPECS * 3, *heavy]))
    assert [spec for part in parts for spec in part] == [*SPECS * 3, *heavy]
    assert max(map(len, parts)) <= CHUNK_SPECS
    assert [len(part) for part in parts[-4:]] == [1] * 4
    assert CHUNK_BYTES < 2 * 4 * 2048 * 2048 * 9


def test_a_damaged_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("nonsense " * 200)
    with pytest.raises(CorruptInputError, match="delete"):
        measured(SPECS, ScriptedBackend(), "fp32", 1, tmp_path / "s")


def test_at_int8_the_rest_is_of_the_type_that_the_backend_runs(tmp_path: Path) -> None:
    """Half the bytes of float maps, and only of those: the rounded ones are the same."""

    class Halves(ScriptedBackend):
        int8_fallback = "fp16"

    bare = {"overhead_ms": 0.0, "ms_per_gmac": 0.0}
    singles, halves = (
        measured(SPECS[:1], made(**bare), "int8", 1, tmp_path / made.__name__)
        for made in (ScriptedBackend, Halves)
    )
    key = (SPECS[0], "int8", 1)
    assert 0.4 < halves.entries[key].ms / singles.entries[key].ms < 0.9


RUN = """
import sys
from pathlib import Path
from tests.measure.test_table import SPECS
from tests.measure.scripted import ScriptedBackend
from trt_layermerge.measure import table
from tests.measure.networks import measured
table.CHUNK_SPECS = 2
stalls = {str(spec): 0.02 for spec in SPECS}
measured(SPECS, ScriptedBackend(stalls=stalls), "fp32", 1, Path(sys.argv[1]), rounds=3)
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_killed_run_continues_and_ends_with_the_same_table(tmp_path: Path) -> None:
    whole = measured(SPECS, ScriptedBackend(), "fp32", 1, tmp_path / "whole", rounds=3)
    path = tmp_path / "killed"
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", RUN, str(path)])
        before = stored(path)
        deadline = time.monotonic() + 60
        while stored(path) < before + 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert before + 4 <= stored(path) < len(SPECS)
    kept = stored(path)
    backend = ScriptedBackend()
    table = measured(SPECS, backend, "fp32", 1, path, rounds=3)
    assert len(backend.opened) == len(SPECS) - kept
    assert table == whole


def stored(path: Path) -> int:
    """Returns how many of the specs the store has."""
    with LatencyStore(path, ScriptedBackend().device()) as store:
        return sum(store.get(spec, "fp32", 1) is not None for spec in SPECS)
