"""``docs/results/post-training.md`` says what its result file says."""

from __future__ import annotations

from typing import Any

from tests.bench.bm_post_training import RESULT, Trial, page, recorded


def test_the_page_is_made_of_the_recorded_trials() -> None:
    assert RESULT.read_text(encoding="utf-8") == page(recorded)


def test_another_figure_makes_another_page() -> None:
    def other(trial: Trial, split: str) -> dict[str, Any]:
        row = recorded(trial, split)
        return {**row, "accuracy": row["accuracy"] - 0.01} if split == "test" else row

    assert page(other) != page(recorded)
