"""Pages of results say what their recorded figures say."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.manual.pages import PAGES as MANUAL
from benchmarks.pages import AWAITED, MODULES, page_of
from benchmarks.results import RESULTS, Page, measured_by
from benchmarks.studies.report import PAGES
from benchmarks.studies.report import Page as StudyPage
from trt_layermerge.core.jsonio import Json
from trt_layermerge.errors import CorruptInputError, UsageError


@pytest.mark.parametrize("module", MODULES)
def test_a_page_is_made_of_its_recorded_figures(module: str) -> None:
    page = page_of(module)
    assert page.path.read_text(encoding="utf-8") == page.read()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_study_s_page_is_made_of_its_rows(page: StudyPage) -> None:
    assert (RESULTS / page.name).read_text("utf-8") == page.write(RESULTS / "data" / page.data)


def test_no_page_is_typed_by_hand() -> None:
    made = {page_of(module).path.name for module in (*MODULES, *AWAITED)}
    made |= {page.name for page in PAGES} | {Path(page).name for page in MANUAL}
    assert {path.name for path in RESULTS.glob("*.md")} <= made


@pytest.mark.parametrize("module", AWAITED)
def test_a_page_whose_figures_are_recorded_is_not_awaited(module: str) -> None:
    assert not page_of(module).data.exists()


def test_every_benchmark_with_a_page_is_known() -> None:
    folder = RESULTS.parents[1] / "benchmarks"
    having = [
        ".".join(path.relative_to(folder).with_suffix("").parts)
        for path in folder.rglob("*.py")
        if "\nPAGE = " in path.read_text(encoding="utf-8")
    ]
    assert sorted(having) == sorted((*MODULES, *AWAITED))


def words(header: Json, rows: list[Json]) -> str:
    return f"{measured_by('bm_words', header)} {header['rounds']} rounds: {rows}\n"


def test_a_recorded_page_reads_back_as_written(tmp_path: Path) -> None:
    page = Page("words", words, tmp_path)
    page.record({"rounds": 3}, [{"ms": 0.1}])
    text = page.path.read_text(encoding="utf-8")
    assert text == page.read()
    assert text.startswith("Made by `python -m benchmarks.bm_words` at `")
    assert text.endswith(" 3 rounds: [{'ms': 0.1}]\n")


def test_a_page_and_figures_that_differ_are_noticed(tmp_path: Path) -> None:
    page = Page("words", words, tmp_path)
    page.record({"rounds": 3}, [{"ms": 0.1}])
    page.data.write_text(page.data.read_text().replace("0.1", "0.2"))
    assert page.path.read_text(encoding="utf-8") != page.read()


def test_figures_of_another_page_are_refused(tmp_path: Path) -> None:
    page, other = (Page(name, words, tmp_path) for name in ("words", "other"))
    page.record({"rounds": 3}, [])
    other.data.write_text(page.data.read_text())
    with pytest.raises(CorruptInputError, match="schema"):
        other.read()


def test_a_page_without_figures_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no file .*words\.jsonl"):
        Page("words", words, tmp_path).read()
