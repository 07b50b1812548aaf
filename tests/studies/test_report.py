from __future__ import annotations

from pathlib import Path

import pytest

from studies.glyphs_page import glyphs_page, read_glyphs
from studies.importance_page import importance_page
from studies.report import PAGES, RESULTS, write_pages
from tests.studies import invented
from trt_layermerge.core.jsonio import write_lines
from trt_layermerge.errors import UsageError


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write_lines(tmp_path / "data/glyphs.jsonl", "glyphs", invented.HEADER, invented.rows())
    write_lines(
        tmp_path / "data/importance.jsonl", "importance-study", invented.HEADER, invented.scores()
    )
    return tmp_path


def test_figures_of_the_glyph_study_by_hand(results: Path) -> None:
    _, (network,), _ = read_glyphs(results / "data/glyphs.jsonl")
    ours, paper = network.cells["ours", 2.0], network.cells["paper", 2.0]
    assert (ours.rate, paper.rate) == (0.006, 0.002)  # the best on val; the lowest of equals
    assert ours.hits.mean(1).tolist() == [6 / 8, 7 / 8]
    assert paper.hits.mean(1).tolist() == [4 / 8, 4 / 8]
    assert ours.val == pytest.approx(0.8)
    assert (ours.on_target, paper.on_target) == (True, False)
    # Both fonts have the same two wrong images under the paper's plan.
    assert network.accuracy(paper.hits).low == network.accuracy(paper.hits).high == 0.5
    lead = network.against(ours.hits, paper.hits)
    assert lead.mean == pytest.approx(0.3125)
    # Worst: seed 0 alone, which is wrong once in each font; best: seed 1 and the second font.
    assert (lead.low, lead.high) == pytest.approx((0.25, 0.5))


def test_the_page_says_what_the_results_say(results: Path) -> None:
    page = glyphs_page(results / "data/glyphs.jsonl")
    assert "| ours | 2.01x | 9 | 0.006 | 80.0% | 81.2% [" in page
    assert "| paper | 1.90x ! | 9 | 0.002 | 60.0% | 50.0% [50.0%, 50.0%] | 50.0% / 50.0% |" in page
    # Untrained, after the first epoch, and at the end: the means over the seeds.
    assert "| ours | 2x | 2.01x | 87.5% [75.0%, 100.0%] | 10.0% | 40.0% | 80.0% |" in page
    assert "+31.25 [+25.00, +50.00]" not in page  # another latency: no difference is told
    assert "Not at equal latency, so not compared: paper (1.90x)." in page
    assert "The original has 87.5% [75.0%, 100.0%] on the 8 test images of 2 fonts" in page
    assert "4 entries of the full table in 2 s (0.50 s each); a plan, measured" in page
    assert "raced, 20 to 20 s for ours and 5 to 5 s for the others; a training 3 to 7 s" in page


def test_arms_at_equal_latency_are_compared_in_words(results: Path) -> None:
    path = results / "data/glyphs.jsonl"
    rows = [{**r, "speedup": 1.99} if r.get("ms") == 0.263 else r for r in invented.rows()]
    write_lines(path, "glyphs", invented.HEADER, rows)
    assert "Ours is more accurate than paper (+31.25 points)." in glyphs_page(path)
    assert "+31.25 [+25.00, +50.00]" in glyphs_page(path)
    swapped = [
        {**r, "classes": invented.classes((0, 1, 4) if r["plan"] == "aaaa" else (0, 4))}
        if r["kind"] == "test" and r["seed"] is not None
        else r
        for r in rows
    ]
    write_lines(path, "glyphs", invented.HEADER, swapped)
    assert (
        "Ours is less accurate than paper (-12.50 points, but not clearly: zero is within the "
        "interval)." in glyphs_page(path)
    )


@pytest.mark.parametrize(("speedup", "lead"), [(1.99, "+31.25 [+25.00, +50.00]"), (1.9, "-")])
def test_variants_are_compared_with_ours_at_equal_latency_only(
    results: Path, speedup: float, lead: str
) -> None:
    path = results / "data/glyphs.jsonl"
    rows = [
        {**row, **({"arm": "ours-original"} if row.get("arm") == "paper" else {})}
        | ({"speedup": speedup} if row.get("ms") == 0.263 else {})
        for row in invented.rows()
    ]
    write_lines(path, "glyphs", invented.HEADER, rows)
    page = glyphs_page(path).splitlines()
    line = next(text for text in page if text.startswith("| ours-original | 2x |"))
    assert line.split(" | ")[-2] == lead


def test_trainings_that_count_no_longer_are_told(results: Path) -> None:
    path = results / "data/glyphs.jsonl"
    assert "Besides" not in glyphs_page(path)
    gone = [
        invented.training("cccc", "repair", 0.006, 0, 0.9),  # no arm has this plan
        invented.training("aaaa", "repair", 0.05, 0, 0.9),  # at a rate that is not offered
    ]
    write_lines(path, "glyphs", invented.HEADER, [*invented.rows(), *gone])
    page = glyphs_page(path)
    assert "Besides, 2 trainings with rates of 0.006, 0.05 were looked at on `val`" in page
    assert "| ours | 2.01x | 9 | 0.006 | 80.0% | 81.2% [" in page  # they decide nothing now


def test_who_is_ahead_on_test_is_told_with_its_accuracy_on_val(results: Path) -> None:
    path = results / "data/glyphs.jsonl"
    rows = [
        row
        | ({"speedup": 1.99} if row.get("ms") == 0.263 else {})
        | (
            {"classes": invented.classes((0,) if row["plan"] == "bbbb" else (0, 4))}
            if row["kind"] == "test" and row["seed"] is not None
            else {}
        )
        for row in invented.rows()
    ]
    write_lines(path, "glyphs", invented.HEADER, rows)
    said = "by which everything was chosen, ours has 80.0%, paper 60.0%."
    assert said in glyphs_page(path)


def test_a_study_that_is_not_finished_has_no_page(results: Path) -> None:
    rows = [r for r in invented.rows() if (r["kind"], r.get("seed")) != ("test", 1)]
    path = results / "data/glyphs.jsonl"
    write_lines(path, "glyphs", invented.HEADER, rows)
    with pytest.raises(UsageError, match="finish the study first"):
        glyphs_page(path)


def test_the_page_of_the_importance_study_by_hand(results: Path) -> None:
    page = importance_page(results / "data/importance.jsonl")
    # finetune: ranks 4 3 1 2 against 1 2 3 4 give 1 − 6 · 18 / 60 = −0.8; with calibrate's
    # 4 3 2 1 they give 0.8 and −1; the means −.25 −.25 −.3 −.2 have ranks 2.5 2.5 1 4: −0.32.
    assert (
        "| all | 4 | -0.80 (-0.80 to -0.80) | 1.00 (1.00 to 1.00) | -0.10 (-1.00 to 0.80) | -0.32 |"
        in page
    )
    assert "| fit | 2 | -1.00 (-1.00 to -1.00) |" in page
    assert "| finetune | 8.00 | 8.00 | 1.5 |" in page
    assert "Other ways to calibrate" not in page
    assert "| random | 3 | 1 to 4 | 0.100 to 0.400 | 1.000 | 1.00 (1.00 to 1.50) |" in page
    assert "| near |" not in page
    assert "| 75% | 0.250 | 5 | 0.500 | 5 |" in page


def test_networks_of_both_methods_are_compared_where_they_are_equally_fast(results: Path) -> None:
    path = results / "data/importance.jsonl"
    assert "No two of them are equally fast." in importance_page(path)
    rows = [{**r, "speedup": 1.99} if r.get("ms") == 0.263 else r for r in invented.rows()]
    write_lines(path.with_name("glyphs.jsonl"), "glyphs", invented.HEADER, rows)
    page = importance_page(path)
    assert "2x | 81.2% | 50.0% | +31.25 [+25.00, +50.00] | 2 | " in page
    assert "In 1 of 1 cases" in page and "these figures favour `calibrate`." in page
    path.with_name("glyphs.jsonl").unlink()
    assert "equally fast" not in importance_page(path)


def test_candidates_that_are_offered_no_longer_are_told(results: Path) -> None:
    path = results / "data/importance.jsonl"
    assert "fit a single unit" not in importance_page(path)
    blocks = {"a": "fit 1:2 16>16 k1x1", "b": "fit 3:5 16>16 k3x3"}
    rows = [{**row, "about": blocks.get(row.get("key", ""), "")} for row in invented.scores()]
    rows = [row if row["about"] else {**row, "about": "compose 1:2"} for row in rows]
    write_lines(path, "importance-study", invented.HEADER, rows)
    assert "Of the candidates, 1 fit a single unit;" in importance_page(path)


def test_other_ways_to_calibrate_by_hand(results: Path) -> None:
    path = results / "data/importance.jsonl"
    found = zip((0, 0, 1, 1), "cdcd", (-5.0, -4.0, -4.0, -5.0), strict=True)
    more = [invented.score("merged", seed, key, delta) for seed, key, delta in found]
    write_lines(path, "importance-study", invented.HEADER, [*invented.scores(), *more])
    page = importance_page(path)
    # Two candidates: ranks are the same or swapped. Seed 0 swaps them, seed 1 does not.
    assert "| merged | merged as it is; not for fits, which are nothing before | 2 | -1.00" in page
    assert "| 0.00 (-1.00 to 1.00) |" in page


def test_pages_and_plots_are_the_same_when_written_again(results: Path) -> None:
    written = write_pages(results)
    first = {path: path.read_bytes() for path in written}
    assert [path.name for path in written] == [
        "glyphs.md",
        "glyphs.svg",
        "importance.md",
        "importance.svg",
    ]
    assert {path: path.read_bytes() for path in write_pages(results)} == first


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_committed_pages_are_what_their_results_give(page: object) -> None:
    from studies.report import Page

    assert isinstance(page, Page)
    data = RESULTS / "data" / page.data
    if not data.exists():
        assert not (RESULTS / page.name).exists(), "a page without results was typed by hand"
        pytest.skip(f"{page.data} has no results yet")
    assert (RESULTS / page.name).read_text(encoding="utf-8") == page.write(data)
    assert (RESULTS / page.plot).exists()
