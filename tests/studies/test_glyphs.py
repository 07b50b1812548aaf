from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from studies.glyphs import parser, run_study, settings_of
from studies.journal import Journal
from studies.report import write_pages
from studies.training import JOURNAL
from studies.workers import Clock, OutOfTimeError
from tests.studies.conftest import tiny_settings
from trt_layermerge.core.jsonio import Json, read_lines, write_lines
from trt_layermerge.errors import UsageError

ROOT = Path(__file__).parents[2]


def quiet(text: str) -> None:
    """Listens to nobody."""


@pytest.fixture(scope="module")
def complete(project: Path) -> Path:
    """Folder of a complete study, done without interruption."""
    run_study(tiny_settings(project, project / "complete"), tell=quiet)
    return project / "complete"


def outcome(work: Path) -> list[Json]:
    """Everything that a study found, in an order of its own and without times."""
    rows = Journal.open(work / JOURNAL, "glyphs", tiny_settings(work, work).identity()).rows
    times = ("seconds", "start_s")
    rows = [row for row in rows if row["kind"] != "session"]
    kept = [{k: v for k, v in row.items() if k not in times} for row in rows]
    return sorted(kept, key=str)


def test_a_complete_study_has_every_training_once_and_a_page(complete: Path) -> None:
    rows = outcome(complete)
    kinds = [row["kind"] for row in rows]
    # ours: two rates and another seed; random: two rates with its first plan, one with its second;
    # post-training, which does not race and may come to the plan of ours: two seeds
    plans = {r["plan"] for r in rows if r["kind"] == "plan"}
    assert len(plans) in (3, 4)
    assert kinds.count("plan") == 4
    assert kinds.count("training") == 6 + 2
    assert kinds.count("test") == 1 + len(plans) + 6  # the original, starts, what counts
    assert kinds.count("latency") == len(plans)
    journal = Journal.open(
        complete / JOURNAL, "glyphs", tiny_settings(complete, complete).identity()
    )
    journal.copy_to(complete / "docs/data/glyphs.jsonl")
    page, _ = write_pages(complete / "docs")
    assert "### tiny, 1.3x" in page.read_text()


def test_a_complete_study_is_not_done_again(complete: Path, project: Path) -> None:
    before = outcome(complete)
    run_study(tiny_settings(project, complete), tell=quiet)
    assert outcome(complete) == before


def test_a_network_that_diverged_is_right_nowhere(
    complete: Path, project: Path, tmp_path: Path
) -> None:
    work = tmp_path / "diverged"
    shutil.copytree(complete, work)
    header, rows = read_lines(work / JOURNAL, "glyphs")
    last = next(row for row in rows[::-1] if row["kind"] == "test")
    key = {name: last[name] for name in ("plan", "course", "rate", "seed")}
    lost = next(r for r in rows if r["kind"] == "training" and r.items() >= key.items())
    lost["diverged"] = True
    write_lines(work / JOURNAL, "glyphs", header, [row for row in rows if row is not last])
    run_study(tiny_settings(project, work), tell=quiet)
    tested = [row for row in read_lines(work / JOURNAL, "glyphs")[1] if row["kind"] == "test"]
    assert tested[-1].items() >= key.items()
    assert last["accuracy"] > 0 == tested[-1]["accuracy"]


def test_a_killed_study_continues_to_the_same_end(complete: Path, project: Path) -> None:
    work = project / "killed"
    code = (
        "import sys; from pathlib import Path; from studies.glyphs import run_study; "
        "from tests.studies.conftest import tiny_settings; "
        "run_study(tiny_settings(Path(sys.argv[1]), Path(sys.argv[2])), 1)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(project), str(work)], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    journal = work / JOURNAL
    while process.poll() is None:
        if journal.exists() and journal.read_text().count('"kind": "training"') >= 2:
            process.kill()
        time.sleep(0.02)
    process.wait()
    trained = journal.read_text().count('"kind": "training"')
    assert 2 <= trained < 8, "it was to be killed in between"
    with journal.open("a") as file:
        file.write('{"kind": "train')  # and while it wrote
    run_study(tiny_settings(project, work), tell=quiet)
    assert outcome(work) == outcome(complete)


def test_when_the_time_is_over_it_stops_and_says_so(project: Path) -> None:
    with pytest.raises(OutOfTimeError):
        run_study(tiny_settings(project, project / "late"), clock=Clock(time.time()), tell=quiet)


def test_other_settings_or_epochs_do_not_mix(complete: Path, project: Path) -> None:
    settings = tiny_settings(project, complete)
    with pytest.raises(UsageError, match="another rates"):
        run_study(replace(settings, rates=(0.1,)), tell=quiet)
    longer = tuple(replace(network, epochs=3) for network in settings.networks)
    with pytest.raises(UsageError, match="another epochs"):
        run_study(replace(settings, networks=longer), tell=quiet)


def test_what_can_be_typed() -> None:
    typed = ["--epochs", "resnet20=7", "--only", "ours", "depth", "--speedups", "1.5", "2.8"]
    found = settings_of(parser().parse_args(typed))
    assert {n.name: n.epochs for n in found.networks} == {"resnet20": 7, "mobilenet_v2": 30}
    assert [arm.name for arm in found.arms] == ["ours", "depth"]
    assert found.speedups == (1.5, 2.8)
    every = settings_of(parser().parse_args(["--epochs", "3"]))
    assert {n.epochs for n in every.networks} == {3}
