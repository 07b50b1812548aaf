"""Links between pages, and into them, lead somewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.manual import site
from benchmarks.manual.site import LINK, ROOT, place, prose, relinked, resolved
from tests.docs.pages import PAGES, anchors, text_of


def broken(page: str, text: str) -> list[str]:
    """Returns the links of a page that lead nowhere."""
    found = []
    for match in LINK.finditer(prose(text)):
        target = resolved(page, match["path"]) if match["path"] else page
        anchor = (match["anchor"] or "")[1:]
        known = (ROOT / target).is_file() and (not anchor or anchor in anchors(target))
        found += [] if known else [match[0]]
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    assert broken(page, text_of(page)) == []


def test_broken_links_are_noticed() -> None:
    text = "[a](data.md) [b](data.md#models) [c](no.md) [d](data.md#no) [e](https://x.org/no)\n"
    assert broken("docs/python.md", f"{text}```\n[f](no.md)\n```\n") == ["no.md", "data.md#no"]


def test_every_page_is_reached_from_the_first() -> None:
    reached = site.outside(["README.md"]).values()
    assert {page for page in PAGES if not page.startswith("docs/")} - set(reached) <= {
        "benchmarks/studies/README.md",  # for those who work on the project
    }


def test_links_of_the_site_are_those_of_the_repository() -> None:
    text = "[a](../engines/README.md#x) [b](data.md) [c](../examples/notebook.py) [d](#here)"
    assert relinked("docs/python.md", text) == (
        "[a](engines/index.md#x) [b](data.md) [c](examples/notebook.py.md) [d](python.md#here)"
    )
    assert place("README.md") == "index.md" and not Path(place("docs/data.md")).is_absolute()
