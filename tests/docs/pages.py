"""Every Markdown file of the repository, and what is in it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import chain, dropwhile, groupby

from benchmarks.manual.site import CODE, ROOT, prose

FOLDERS = ("docs", "engines", "calib", "examples", "tests", "benchmarks")
FOUND = chain.from_iterable((ROOT / folder).rglob("*.md") for folder in FOLDERS)
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in FOUND)]

SHELLS = ("console", "sh")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, *languages: str) -> list[str]:
    """Returns the blocks of code of a page in some languages."""
    found = [match[0].split("\n", 1) for match in CODE.finditer(text_of(page))]
    return [
        text.rpartition("`" * 3)[0].rstrip("`")
        for fence, text in found
        if fence.strip("`") in languages
    ]


def anchors(page: str) -> set[str]:
    """Returns what the headings of a page are called in links."""
    titles = re.findall(r"^#+ (.*)$", prose(text_of(page)), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in plain}


def typed(page: str) -> Iterator[list[str]]:
    """Yields the words of every command on a page: of blocks, and of those within sentences."""
    lines = [line for text in blocks(page, *SHELLS) for line in _joined(text)]
    spoken = " ".join(prose(text_of(page)).split())
    lines += re.findall(r"`((?:make|python -m|torchrun|trt-layermerge) [^`]+)`", spoken)
    for line in dict.fromkeys(lines):
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&;")
        lexer.whitespace_split = True
        for between, part in groupby(lexer, lambda word: word in ("&&", ";")):
            words = list(dropwhile(lambda word: re.match("[A-Z_]+=|do(ne)?$", word), part))
            if words and not between:
                yield words


def _joined(text: str) -> list[str]:
    return text.replace("\\\n", " ").splitlines()
