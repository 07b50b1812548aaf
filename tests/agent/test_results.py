"""``results.jsonl``: never mixed, never guessed at."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.agent import folders
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.core.jsonio import Json
from trt_layermerge.errors import CorruptInputError, UsageError
from trt_layermerge.measure.agent.jobs import Manifest, load_manifest, read_model
from trt_layermerge.measure.agent.results import Results
from trt_layermerge.measure.agent.run import run_jobs

DEVICE = DeviceInfo("tensorrt", "10.3", "Orin", "compute capability 8.7")
FACTS: Json = {"power_mode": "25W", "missing": {}}


def asked(folder: Path) -> Manifest:
    return load_manifest(folders.singles(folder, 3))


def row(key: str, mode: str | None = "25W", **changes: Any) -> Json:
    model = {"round_ms": [1.5, 1.25], "runs_ms": [1.5, 1.5, 1.25], "method": "graph"}
    state = {"power_mode": mode}
    return {
        "key": key,
        "models": [model],
        "error": None,
        "attempts": 1,
        "before": state,
        "after": state,
        "seconds": 1.0,
        "sentinel": False,
        **changes,
    }


def begun(folder: Path) -> Results:
    results = Results(folder, asked(folder))
    results.begin(DEVICE, FACTS)
    results.append(row("k0"))
    return results


def test_what_is_appended_is_read_again(tmp_path: Path) -> None:
    results = begun(tmp_path)
    results.append(row("k1", models=None, error="no"))
    again = Results(tmp_path, asked(tmp_path))
    assert again.rows == results.rows
    assert [(r.key, r.timing and r.timing.round_ms) for r in again.rows] == [
        ("k0", (1.5, 1.25)),
        ("k1", None),
    ]
    again.begin(DEVICE, FACTS)


def test_a_half_written_last_line_is_cut_off(tmp_path: Path) -> None:
    results = begun(tmp_path)
    whole = results.path.read_bytes()
    header = whole.index(b"\n") + 1
    for cut in (*range(header, len(whole), 40), len(whole) - 1):
        results.path.write_bytes(whole[:cut])
        again = Results(tmp_path, asked(tmp_path))
        assert again.rows == []
        again.begin(DEVICE, FACTS)
        again.append(row("k0"))
        assert results.path.read_bytes() == whole


@pytest.mark.parametrize(
    "line",
    [
        "not JSON",
        "[]",
        "{}",
        json.dumps(row("unknown")),
        json.dumps(row("k1", sentinel=1)),
        json.dumps(row("k1", models=None)),
        json.dumps(row("k1", error="both")),
        json.dumps(row("k1", models=[])),
        json.dumps(row("k1", models=[{"round_ms": [], "runs_ms": [1.0]}])),
        json.dumps(row("k1", models=[{"round_ms": [-1.0], "runs_ms": [1.0]}])),
        json.dumps(row("k1", models=[{"round_ms": [float("nan")], "runs_ms": [1.0]}])),
        json.dumps(row("k1", models=[{"round_ms": [float("inf")], "runs_ms": [1.0]}])),
        json.dumps(row("k1", models=[{"round_ms": ["x"], "runs_ms": [1.0]}])),
    ],
)
def test_a_damaged_line_in_between_is_refused_and_the_rest_can_be_kept(
    tmp_path: Path, line: str
) -> None:
    results = begun(tmp_path)
    good = results.path.read_text()
    results.path.write_text(good + line + "\n" + json.dumps(row("k2")) + "\n")
    with pytest.raises(CorruptInputError, match="delete the damaged line only"):
        Results(tmp_path, asked(tmp_path))
    results.path.write_text(good)
    assert len(Results(tmp_path, asked(tmp_path)).rows) == 1


def test_results_of_other_jobs_are_refused(tmp_path: Path) -> None:
    begun(tmp_path)
    other = load_manifest(folders.singles(tmp_path, 4))
    with pytest.raises(UsageError, match=r"another state of the jobs.*mv .*results-before"):
        Results(tmp_path, other)


@pytest.mark.parametrize(
    ("device", "mode", "said"),
    [
        (DeviceInfo("tensorrt", "10.7", "Orin", "compute capability 8.7"), "25W", "10.7"),
        (DeviceInfo("tensorrt", "10.3", "Thor", "compute capability 11.0"), "25W", "Thor"),
        (DeviceInfo("tensorrt_rtx", "10.3", "Orin", "compute capability 8.7"), "25W", "rtx"),
        (DEVICE, "15W", r"the power mode: it was 25W and is now 15W.*nvpmodel"),
    ],
)
def test_another_device_or_power_mode_is_refused(
    tmp_path: Path, device: DeviceInfo, mode: str, said: str
) -> None:
    begun(tmp_path)
    again = Results(tmp_path, asked(tmp_path))
    with pytest.raises(UsageError, match=said):
        again.begin(device, {"power_mode": mode})
    again.begin(DEVICE, {"power_mode": None})  # not known now: nothing speaks against it


def test_a_row_of_another_power_mode_is_not_appended(tmp_path: Path) -> None:
    results = begun(tmp_path)
    before = results.path.read_bytes()
    for states in ({"before": {"power_mode": "15W"}}, {"after": {"power_mode": "15W"}}):
        with pytest.raises(UsageError, match="is now 15W"):
            results.append(row("k1", **states))
    assert results.path.read_bytes() == before
    results.append(row("k1", mode=None))
    results.append(row("k2", before=None, after=None, models=None, error="it died"))


@pytest.mark.parametrize(
    "name", ["results.jsonl", "attempts.jsonl", ".agent.lock", "agent.log", "timing"]
)
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_the_agent_writes_to_files_of_its_folder_only(tmp_path: Path, name: str, kind: str) -> None:
    folder, dear = tmp_path / "jobs", tmp_path / "dear"
    asked(folder)
    dear.write_text("half a line")
    if kind == "link":
        (folder / name).symlink_to(dear)
    else:
        os.mkfifo(folder / name)
    with pytest.raises(UsageError, match="is a link or no file, and is not written to"):
        run_jobs(folder)
    assert dear.read_text() == "half a line"


def test_a_model_is_a_file(tmp_path: Path) -> None:
    manifest = asked(tmp_path)
    model = next(iter(manifest.jobs.values())).models[0]
    (tmp_path / model.file).unlink()
    os.mkfifo(tmp_path / model.file)
    with pytest.raises(CorruptInputError, match="is no file"):
        read_model(tmp_path, model)
