"""Runs that measure elsewhere: by hand in two round trips, by an agent, and over ssh."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.measure import fake_ssh
from tests.measure.answering import Answering
from tests.pipeline import tiny
from trt_layermerge.backends import get_backend
from trt_layermerge.core.candidate import original_candidate
from trt_layermerge.core.device import DeviceInfo
from trt_layermerge.core.graph import load_graph
from trt_layermerge.core.jsonio import read_lines
from trt_layermerge.core.tables import LatencyTable
from trt_layermerge.errors import CorruptInputError, InfeasibleBudgetError, UsageError
from trt_layermerge.measure import conditions
from trt_layermerge.measure.agent.sources import Reading
from trt_layermerge.pipeline.api import run_stage
from trt_layermerge.pipeline.options import STAGES, RunOptions
from trt_layermerge.pipeline.remote import export_jobs, import_measurements
from trt_layermerge.session import meters, settings
from trt_layermerge.session.recorded import Exported, exported_path

MODE = "no clock, power mode 15W"


def read(runs: Path, name: str) -> dict[str, Any]:
    return json.loads((runs / "tiny" / name).read_text())


def ask(runs: Path, recipe: Path | None = None, **overrides: Any) -> RunOptions:
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    return RunOptions("tiny", runs, recipe, keys)


def answer(folder: Path, **asked: Any) -> Answering:
    """Has the jobs of a folder answered by a device."""
    device = Answering(**asked)
    device(folder, lambda done, total: None)
    return device


@pytest.fixture
def begun(finished: Path, tmp_path: Path) -> Path:
    """Returns a folder of runs, and one whose blocks and networks were imported: ``tiny``."""
    runs = tmp_path / "by hand"
    export_jobs(ask(runs, finished / "tiny.yaml"), tmp_path / "out")
    answer(tmp_path / "out")
    import_measurements(ask(runs), tmp_path / "out" / "results.jsonl")
    return runs


def test_two_round_trips_by_hand_end_with_a_measured_plan(finished: Path, tmp_path: Path) -> None:
    runs = tmp_path / "by hand"
    out = tmp_path / "out"
    told = export_jobs(ask(runs, finished / "tiny.yaml"), out)
    table = LatencyTable.load(finished / "runs/tiny/latency_bare.jsonl").entries
    assert (told["blocks"], told["networks"]) == (len(table), 5)
    assert told["on_the_device"] == "python3 out/trt-layermerge-agent.pyz out"
    assert str(out / "results.jsonl") in told["then_here"]

    device = answer(out)
    assert len(device.asked) == told["blocks"] + told["networks"] + 1
    result = import_measurements(ask(runs), out / "results.jsonl")
    assert result["specs"] == len(table) and result["failed"] == []
    # The very table that measuring here gives, but for the device that it is of.
    imported = LatencyTable.load(runs / "tiny" / "latency_bare.jsonl")
    assert imported.device == DeviceInfo("fake", "1", "far away", MODE)
    assert {k: e.ms for k, e in imported.entries.items()} == pytest.approx(
        {k: e.ms for k, e in table.items()}, rel=1e-12
    )
    header, rows = read_lines(runs / "tiny" / "networks.jsonl", "networks")
    assert len(rows) == 5 and header["device"]["settings"] == MODE
    here, _ = read_lines(finished / "runs/tiny/networks.jsonl", "networks")
    assert header["original_ms"] == pytest.approx(here["original_ms"], rel=1e-12)
    assert rows[0]["ratio"] == pytest.approx(1.0, rel=1e-3)

    run_stage("importance", ask(runs))
    listener = tiny.Recorder()
    predicted = run_stage("search", ask(runs), listener)
    assert predicted["measured_ms"] is predicted["measured_speedup"] is None
    assert predicted["predicted_ms"] <= predicted["budget_ms"]
    (note,) = listener.notes
    assert "predicted, not measured" in note
    assert "trt-layermerge latency --run tiny --export-jobs DIR" in note

    again = export_jobs(ask(runs), tmp_path / "again")
    assert again["blocks"] == 0 and again["networks"] >= 1
    answer(tmp_path / "again")
    import_measurements(ask(runs), tmp_path / "again" / "results.jsonl")
    listener = tiny.Recorder()
    measured = run_stage("search", ask(runs), listener)
    assert measured["measured_ms"] <= measured["budget_ms"]
    assert "measured elsewhere" in listener.notes[0]
    whole, told_run = tiny.run(runs)
    assert told_run.stages("skip")[:4] == STAGES[:4]
    # What the device said of the plan is what the exported network takes on such a device.
    with get_backend("fake").open((runs / "tiny" / "model.onnx").read_bytes()) as runner:
        assert runner.time_burst(1)[0] == pytest.approx(measured["measured_ms"], rel=1e-6)
    assert whole["merged"]["latency_ms"] == measured["measured_ms"]
    assert whole["speedup"] == measured["measured_speedup"] >= 1.3
    assert read(runs, "bench.json")["comparable"] is False


def test_a_predicted_plan_can_be_carried_through_to_the_report(begun: Path) -> None:
    summary, _ = tiny.run(begun)
    assert summary["speedup"] is summary["merged"]["latency_ms"] is None
    assert summary["predicted_ms"] <= summary["budget_ms"]
    assert "not measured" in (begun / "tiny" / "report.md").read_text()


def test_nothing_is_left_to_export_once_everything_is_known(begun: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"was imported.*trt-layermerge search --run tiny"):
        export_jobs(ask(begun), tmp_path / "more")


def test_a_block_that_failed_there_is_no_obstacle(finished: Path, tmp_path: Path) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    told = export_jobs(ask(runs, finished / "tiny.yaml"), out)
    labels = [job["label"] for job in json.loads((out / "manifest.json").read_text())["jobs"]]
    exported = Exported.load(exported_path(runs / "tiny", told["manifest"]))
    used = {str(s) for network in exported.networks for c in network.changed for s in c.costs}
    # The original has no such block, nor has any of the random networks.
    broken = next(label for label in labels if "k5x5" in label and label not in used)
    pair = "original and sample of 2 replacements"
    listener = tiny.Recorder()
    answer(out, broken={broken: "no tactic", pair: "out of memory"})
    result = import_measurements(ask(runs), out / "results.jsonl", listener)
    assert result["failed"] == [broken]
    lost = labels.count(pair)
    notes = [note for note in listener.notes if "could not be measured" in note]
    assert len(notes) == (1 if lost else 0)
    assert result["networks"] == 5 - lost


def test_a_network_with_a_block_that_fails_alone_fits_nothing(
    finished: Path, tmp_path: Path
) -> None:
    """The random networks were drawn before anybody knew that the block would fail."""
    runs, out = tmp_path / "runs", tmp_path / "out"
    told = export_jobs(ask(runs, finished / "tiny.yaml"), out)
    exported = Exported.load(exported_path(runs / "tiny", told["manifest"]))
    used = [{s for c in network.changed for s in c.costs} for network in exported.networks]
    original = {spec for c in exported.networks[0].changed for spec in c.costs}
    graph = load_graph(runs / "tiny" / "graph.json")
    units = (original_candidate(graph, unit.index) for unit in graph.units)
    original |= {spec for c in units for spec in c.costs}
    broken = next(spec for specs in used for spec in specs if spec not in original)
    lost = sum(broken in specs for specs in used)
    listener = tiny.Recorder()
    answer(out, broken={str(broken): "no tactic"})
    result = import_measurements(ask(runs), out / "results.jsonl", listener)
    assert result["failed"] == [str(broken)]
    assert result["networks"] == 5 - lost < 5
    (note,) = [note for note in listener.notes if "left out" in note]
    assert f"{lost} of 5 networks" in note and "no tactic" in note
    run_stage("importance", ask(runs))
    assert run_stage("search", ask(runs))["predicted_ms"] is not None


def cut_off(path: Path, lines: int) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-lines]))


def test_an_import_that_does_not_fit_is_refused(finished: Path, tmp_path: Path) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    export_jobs(ask(runs, finished / "tiny.yaml"), out)
    answer(out)
    results = out / "results.jsonl"
    options = ask(runs)

    def refused(words: str, kind: type[Exception] = UsageError, **overrides: Any) -> None:
        with pytest.raises(kind, match=words):
            import_measurements(ask(runs, **overrides), results)

    whole = results.read_bytes()
    cut_off(results, 3)
    refused(r"lacks 3 of \d+ measurements; continue on the device .*agent.pyz DIR")
    results.write_bytes(whole)
    refused(r"measured with .*'fp32', 1.*--precision fp32 --batch 1", measure__batch=4)
    refused(r"--precision fp32", measure__precision="fp16")
    refused(r"--backend fake", measure__backend="onnxruntime")
    results.write_bytes(whole.replace(b'"backend": "fake"', b'"backend": "torch"', 1))
    refused(r"measured with the backend torch, not with fake; .* without --backend")
    results.write_bytes(whole.replace(b'"round_ms": [0', b'"round_ms": [NaN, 0', 1))
    refused(r"results\.jsonl is damaged", CorruptInputError)
    results.unlink()
    refused("fetch results.jsonl from the device")
    results.write_bytes(whole)
    with pytest.raises(UsageError, match="which the run 'other' did not export"):
        import_measurements(RunOptions("other", runs, finished / "tiny.yaml"), results)
    assert not (runs / "tiny" / "jobs" / "imported").exists()
    assert not (runs / "tiny" / "latency.jsonl").exists()
    import_measurements(options, results)


def test_measurements_of_two_devices_do_not_mix(begun: Path, tmp_path: Path) -> None:
    run_stage("importance", ask(begun))
    run_stage("search", ask(begun))
    export_jobs(ask(begun), tmp_path / "again")
    answer(tmp_path / "again", facts={"power_mode": "MAXN"})
    with pytest.raises(UsageError, match=r"power mode MAXN.*power mode 15W.*do not compare"):
        import_measurements(ask(begun), tmp_path / "again" / "results.jsonl")


def test_a_run_by_hand_measures_nothing_here(begun: Path) -> None:
    run_stage("importance", ask(begun))
    with pytest.raises(UsageError, match=r"\d+ of \d+ blocks were not measured .*--export-jobs"):
        run_stage("inspect", ask(begun, search__limits={"max_units": 4, "max_kernel": 7}))
        run_stage("latency", ask(begun))


def test_jobs_go_into_an_empty_folder_only(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "holiday.jpg").touch()
    with pytest.raises(UsageError, match="is not empty"):
        export_jobs(ask(tmp_path / "runs", finished / "tiny.yaml"), tmp_path / "out")
    assert not (tmp_path / "runs").exists()


def test_a_budget_that_no_plan_is_predicted_to_meet_leaves_the_frontier(begun: Path) -> None:
    run_stage("importance", ask(begun))
    with pytest.raises(InfeasibleBudgetError, match=r"the fastest is predicted to take .* ms"):
        run_stage("search", ask(begun, search__speedup=50.0))
    assert len(read(begun, "frontier.json")["points"]) > 1
    assert not (begun / "tiny" / "plan.json").exists()


def test_measuring_here_again_is_one_setting_away(begun: Path) -> None:
    run_stage("latency", ask(begun, measure__recorded=False))
    assert LatencyTable.load(begun / "tiny/latency.jsonl").device.settings == "no clock"


@pytest.fixture
def isolated_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the backend ``fake`` measured like an engine: by the agent."""
    monkeypatch.setattr(settings, "ISOLATED", ("fake",))


@pytest.mark.usefixtures("isolated_fake")
def test_a_whole_run_through_an_agent(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Answering()
    monkeypatch.setattr(meters, "run_here", device)
    summary, told = tiny.run(tmp_path, finished / "tiny.yaml")
    there, here = (read(runs, "plan.json") for runs in (tmp_path, finished / "runs"))
    assert there["candidates"] == here["candidates"]
    assert there["notes"]["measured_ms"] == pytest.approx(here["notes"]["measured_ms"], rel=1e-6)
    assert len(there["notes"]["measured_builds"]) == 3
    assert any("3 builds of the network are" in note for note in told.notes)
    assert summary["speedup"] >= 1.3
    measured = len(device.asked)
    assert tiny.run(tmp_path)[1].stages("skip") == STAGES
    assert len(device.asked) == measured


@pytest.mark.usefixtures("isolated_fake")
def test_what_is_measured_here_in_another_way_is_of_the_same_device_in_the_same_power_mode(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a Jetson the table comes from the agent, and bench times engines in this process."""
    monkeypatch.setattr(meters, "run_here", Answering(device=get_backend("fake").device()))

    def run_in(mode: str) -> tuple[Any, Any]:
        monkeypatch.setattr(conditions, "power_mode", lambda sources: Reading(mode))
        summary, _ = tiny.run(tmp_path, finished / "tiny.yaml")
        return summary["predicted_ms"], read(tmp_path, "bench.json")["device"]["settings"]

    predicted_ms, settings = run_in("15W")
    assert settings == MODE
    assert predicted_ms == pytest.approx(read(tmp_path, "plan.json")["predicted_ms"], rel=0.01)
    predicted_ms, settings = run_in("MAXN")
    assert settings == "no clock, power mode MAXN"
    assert predicted_ms is None


@pytest.mark.usefixtures("isolated_fake")
def test_the_real_agent_fills_the_table(finished: Path, tmp_path: Path) -> None:
    options = ask(tmp_path, finished / "tiny.yaml")
    listener = tiny.Recorder()
    result = run_stage("latency", options, listener)  # of a new run, as the docs have it
    assert listener.stages("done") == ("inspect", "latency")
    assert result["device"] == "fake device (fake 1, no clock)"
    assert (result["failed"], result["networks"]) == ([], 5)
    assert ("measuring", result["specs"]) in listener.steps
    assert not list((tmp_path / "tiny" / "jobs").glob("*/models"))
    run_stage("latency", ask(tmp_path, measure__networks=5))  # the blocks come from the store
    manifest = json.loads((tmp_path / "tiny/jobs/specs/manifest.json").read_text())
    assert manifest["rounds"] == 3


def test_a_table_over_ssh(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = fake_ssh.install(tmp_path, monkeypatch)
    options = ask(tmp_path / "runs", finished / "tiny.yaml", measure__host="jetson")
    listener = tiny.Recorder()
    fake_ssh.break_connections(home, 1)
    with pytest.raises(Exception, match="connection to jetson failed"):
        run_stage("latency", options, listener)
    result = run_stage("latency", ask(tmp_path / "runs"), listener)  # the run knows the host
    assert result["device"] == "fake device (fake 1, no clock)"
    assert sum(note.startswith("ssh ") for note in listener.notes) >= 9
    before = len(fake_ssh.calls(home))
    listener = tiny.Recorder()
    run_stage("latency", ask(tmp_path / "runs"), listener)
    assert listener.events == [("inspect", "skip"), ("latency", "skip")]
    assert len(fake_ssh.calls(home)) == before  # to skip costs no connection


def test_a_host_that_is_an_option_is_refused_and_not_remembered(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (runs / "tiny" / "recipe.yaml").read_text()
    with pytest.raises(UsageError, match="not a name that ssh can be given"):
        run_stage("latency", ask(runs, measure__host="-oProxyCommand=touch x"))
    assert (runs / "tiny" / "recipe.yaml").read_text() == before


def test_the_command_line_goes_there_and_back(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "p", ignore=shutil.ignore_patterns("runs"))

    def type_in(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=tmp_path / "p", capture_output=True, text=True)

    verb = ("-m", "trt_layermerge", "latency", "--run", "tiny", "--json")
    out = type_in(*verb, "--recipe", "tiny.yaml", "--export-jobs", "out")
    assert out.returncode == 0, out.stderr
    told = json.loads(out.stdout)
    agent = type_in(*told["on_the_device"].split()[1:])
    assert agent.returncode == 0, agent.stderr
    back = type_in(*verb, *told["then_here"].split()[-2:])
    assert back.returncode == 0, back.stderr
    assert json.loads(back.stdout)["specs"] == told["blocks"]
    both = type_in(*verb, "--ssh", "host", "--import", "out/results.jsonl")
    assert both.returncode == 2 and "exclude one another" in both.stderr
