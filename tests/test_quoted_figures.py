"""Figures in the documents are recorded ones, or settings and limits that are named here."""

from __future__ import annotations

import re

import pytest

from benchmarks.pages import MODULES, page_of
from benchmarks.quotes import Quote, quotes
from benchmarks.studies.settings import ROOT

QUOTES = list(quotes())
MADE = [page_of(module).path for module in MODULES]
"""Pages that are made of recorded figures alone (``test_result_pages``)."""

DOCUMENTS = (
    *("README.md", "calib/README.md", "engines/README.md", "examples/glyphs/README.md"),
    *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")) if p not in MADE),
)

FIGURE = re.compile(
    r"\d[\d.,]*(?:x\b|\s?%|\s?(?:ms|µs|s|[kKMG]i?B|points?|seconds|minutes|hours)\b)"
)

NOT_MEASURED = {
    "docs/data.md": ["140 GB", "64 MB"],  # the size of ImageNet; what Docker gives to /dev/shm
    "docs/scaling.md": ["2 GiB", "1 GiB"],  # limits
}


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


@pytest.mark.parametrize("quote", QUOTES, ids=lambda quote: quote.words[:40])
def test_a_document_quotes_the_recorded_figures(quote: Quote) -> None:
    assert quote.found(read(quote.document)).groups() == quote.figures


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_other_figure_stands_in_a_document(document: str) -> None:
    text = read(document)
    for quote in QUOTES:
        if quote.document == document:
            text = text.replace(quote.found(text)[0], "")
    text = re.sub(r"^```.*?^```|`[^`]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    assert FIGURE.findall(text) == NOT_MEASURED.get(document, [])


TEXT = "It takes 2.3 ms\nof time, at 1.50x.\n"


def test_figures_are_found_and_replaced_wherever_lines_break() -> None:
    quote = Quote("d.md", "takes {} ms of time, at {}x", ("10", "0.9"))
    assert quote.found(TEXT).groups() == ("2.3", "1.50")
    assert quote.updated(TEXT) == "It takes 10 ms\nof time, at 0.9x.\n"


@pytest.mark.parametrize(("text", "count"), [("It takes long.", 0), (TEXT + TEXT, 2)])
def test_words_that_are_missing_or_repeated_are_refused(text: str, count: int) -> None:
    with pytest.raises(ValueError, match=f"d.md has {count} times: takes"):
        Quote("d.md", "takes {} ms of time", ("1",)).updated(text)


def test_figures_are_told_from_sizes_and_names() -> None:
    assert FIGURE.findall("2 % or 3.1x, 110 s, 8 GB; 3x224x224, 32 x 32, ResNet-18, 16 images") == [
        "2 %",
        "3.1x",
        "110 s",
        "8 GB",
    ]
