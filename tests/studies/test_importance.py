from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from studies.candidates import METHODS, VARIANTS
from studies.importance import run_study
from studies.importance_page import importance_page
from tests.studies.conftest import tiny_settings


def test_a_tiny_study_scores_by_every_method_once(project: Path, tmp_path: Path) -> None:
    settings = replace(tiny_settings(project, tmp_path / "work"), seeds=(0,))
    told: list[str] = []
    journal = run_study(settings, count=4, plans=4, tell=told.append)
    scores = journal.of("score")
    assert {row["method"] for row in scores} == {*METHODS, *VARIANTS}
    for method in {*METHODS, *VARIANTS} - {"merged"}:
        assert sum(row["method"] == method for row in scores) == 4
    assert all(row["candidate"] != "fit" for row in scores if row["method"] == "merged")
    assert all(-100 < row["delta"] < 1 for row in scores)
    by_images = {
        name: [row["delta"] for row in scores if row["method"] == name]
        for name in ("calibrate", "images-64")
    }
    assert by_images["calibrate"] != by_images["images-64"]
    assert {row["by"] for row in journal.of("plan")} == {"random", "near"}
    again = run_study(settings, count=4, plans=4, tell=told.append)
    assert again.of("score") == scores
    journal.copy_to(tmp_path / "importance.jsonl")
    assert "| images-64 |" in importance_page(tmp_path / "importance.jsonl")
