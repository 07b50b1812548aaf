"""The manual becomes a site: without a warning, and with nothing that has to be fetched."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.manual.site import ROOT, place
from tests.docs.pages import PAGES

pytest.importorskip("material")

FETCHED = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of the site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "http_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.strip()) == (0, "")
    return folder


def test_every_page_is_in_it(site: Path) -> None:
    for page in PAGES:
        if page.startswith("docs/") or page == "README.md":
            made = site / place(page).replace(".md", ".html")
            assert made.is_file(), page


def test_nothing_is_fetched_to_read_it(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert {p.name for p in pages if FETCHED.search(p.read_text(encoding="utf-8"))} == set()
    assert FETCHED.search('<script src="https://unpkg.com/x"></script>')
