"""The durable table: scores once, continues, and does not mix."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.importance.scored import estimate
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.tables import ImportanceEntry, ImportanceTable
from trt_layermerge.core.unit import Block
from trt_layermerge.errors import CorruptInputError, DeviceError, UsageError

CANDIDATES = tuple(Candidate(Block(i, i + 2), "fit", (), ()) for i in range(6))
NOTES = {"model": "abc", "images": 512, "repairs": ("ls-zero", "none")}


class Counting:
    """Scores by the start of the block; stops on demand."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.scored: list[int] = []
        self.stop_at = stop_at

    def entry(self, candidate: Candidate) -> ImportanceEntry:
        start = candidate.block.start
        if start == self.stop_at:
            raise KeyboardInterrupt
        self.scored.append(start)
        return ImportanceEntry(-start / 10, "calibrate", "ls-zero")


def test_scores_each_key_once_and_reports(tmp_path: Path) -> None:
    scorer, seen = Counting(), []
    table = estimate(
        CANDIDATES + CANDIDATES[:2], scorer, tmp_path / "t", NOTES, lambda *p: seen.append(p)
    )
    assert scorer.scored == list(range(6))
    assert seen == [(i, 6) for i in range(7)]
    assert table[CANDIDATES[3]] == ImportanceEntry(-0.3, "calibrate", "ls-zero")
    assert ImportanceTable.load(tmp_path / "t").entries == table.entries


def test_continues_after_an_interruption_and_a_half_written_line(tmp_path: Path) -> None:
    path = tmp_path / "t"
    with pytest.raises(KeyboardInterrupt):
        estimate(CANDIDATES, Counting(stop_at=3), path, NOTES)
    with path.open("a") as file:
        file.write('{"start": 3, "end"')
    scorer = Counting()
    table = estimate(CANDIDATES, scorer, path, NOTES)
    assert scorer.scored == [3, 4, 5]
    whole = estimate(CANDIDATES, Counting(), tmp_path / "other", NOTES)
    assert table.entries == whole.entries
    assert path.read_bytes() == (tmp_path / "other").read_bytes()


@pytest.mark.parametrize("notes", [{**NOTES, "images": 511}, {"model": "abc"}, {**NOTES, "x": 1}])
def test_other_notes_are_refused(tmp_path: Path, notes: dict[str, object]) -> None:
    path = tmp_path / "t"
    estimate(CANDIDATES[:2], Counting(), path, NOTES)
    kept = path.read_bytes()
    with pytest.raises(UsageError, match="delete the file"):
        estimate(CANDIDATES, Counting(), path, notes)
    assert path.read_bytes() == kept


def test_damage_and_unwritable_folders(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text("not json\n")
    with pytest.raises(CorruptInputError, match="damaged"):
        estimate(CANDIDATES, Counting(), path, NOTES)
    with pytest.raises(DeviceError, match="cannot write"):
        estimate(CANDIDATES, Counting(), path / "below", NOTES)


def test_the_table_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import trt_layermerge.importance"
    subprocess.run([sys.executable, "-c", code], check=True)
