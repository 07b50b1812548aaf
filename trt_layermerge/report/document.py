"""What a page consists of, before it is HTML or Markdown: both twins show the same document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of plain sentences."""

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of plain text below a heading row.

    Attributes:
        head: Names of the columns.
        rows: Cells, as many a row as there are columns.
        numeric: Indices of the columns to align right.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """An SVG picture.

    Attributes:
        name: File name without its ending.
        svg: The picture.
        caption: What it shows and how to read it.
    """

    name: str
    svg: str
    caption: str


@dataclass(frozen=True, slots=True)
class Code:
    """Text in its own line breaks."""

    text: str


Part: TypeAlias = Paragraph | Bullets | Table | Picture | Code


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, the name that links to it, and what stands below."""

    anchor: str
    heading: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """One question of the first screen.

    Attributes:
        question: A few words.
        figure: The answer at a glance.
        detail: The answer in a sentence.
        verdict: ``good``, ``bad`` or ``open``.
    """

    question: str
    figure: str
    detail: str
    verdict: str = "open"


@dataclass(frozen=True, slots=True)
class Document:
    """A whole page.

    Attributes:
        title: Its heading.
        lead: One or two sentences below it.
        notices: What must not be overlooked, above everything else.
        answers: The first screen.
        unverified: What nobody checked.
        sections: The details.
    """

    title: str
    lead: str
    notices: tuple[str, ...]
    answers: tuple[Answer, ...]
    unverified: tuple[str, ...]
    sections: tuple[Section, ...]
