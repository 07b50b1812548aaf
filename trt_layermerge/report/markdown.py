"""The document as Markdown, with its pictures as files beside it."""

from __future__ import annotations

import re
from html import escape

from trt_layermerge.report.document import (
    Bullets,
    Code,
    Document,
    Paragraph,
    Part,
    Picture,
    Table,
)

PICTURE_FOLDER = "pictures"


def render_markdown(document: Document) -> str:
    """Returns the page; pictures are linked as ``pictures/NAME.svg``."""
    answers = Table(
        ("", "", ""),
        tuple((a.question, a.figure, a.detail) for a in document.answers),
    )
    unverified: Part = (
        Bullets(document.unverified)
        if document.unverified
        else Paragraph("Nothing is known to be unverified.")
    )
    blocks = [
        f"# {plain(document.title)}",
        plain(document.lead),
        *(f"> **Mind:** {plain(words)}" for words in document.notices),
        _part(answers),
        "**Not verified**",
        _part(unverified),
    ]
    for section in document.sections:
        blocks.append(f"## {plain(section.heading)}")
        blocks += [_part(part) for part in section.parts]
    return "\n\n".join(blocks) + "\n"


def plain(words: str) -> str:
    """Returns text on one line that Markdown and HTML take literally."""
    return re.sub(r"([\\`*_\[\]#|~$])", r"\\\1", escape(" ".join(words.split()), quote=False))


def _part(part: Part) -> str:
    match part:
        case Paragraph(words):
            return plain(words)
        case Bullets(items):
            return "\n".join(f"- {plain(item)}" for item in items)
        case Code(words):
            longest = max((len(run) for run in re.findall("`+", words)), default=0)
            fence = "`" * max(3, longest + 1)
            return f"{fence}\n{words.rstrip()}\n{fence}"
        case Picture(name, _, caption):
            return f"![{plain(caption)}]({PICTURE_FOLDER}/{name}.svg)\n\n{plain(caption)}"
        case Table():
            return _table(part)


def _table(table: Table) -> str:
    rule = ["---:" if i in table.numeric else "---" for i in range(len(table.head))]
    rows = [[plain(cell) for cell in row] for row in (table.head, *table.rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (rows[0], rule, *rows[1:]))
