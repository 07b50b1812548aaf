"""The document as one HTML page: style and pictures inside, no scripts, nothing loaded."""

from __future__ import annotations

from html import escape

from trt_layermerge.report.document import (
    Answer,
    Bullets,
    Code,
    Document,
    Paragraph,
    Part,
    Picture,
    Section,
    Table,
)
from trt_layermerge.report.style import PAGE_STYLE

MARKS = {"good": "✓", "bad": "✗", "open": ""}


def render_html(document: Document) -> str:
    """Returns the page; all text is escaped, and nothing outside the page is asked for."""
    title = escape(document.title)
    links = "".join(
        f'<a href="#{escape(s.anchor)}">{escape(s.heading)}</a>' for s in document.sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>{PAGE_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<header>\n<h1>{title}</h1>\n<p class="lead">{escape(document.lead)}</p>\n</header>\n'
        f"{''.join(map(_notice, document.notices))}"
        f'<div class="answers">\n{"".join(map(_answer, document.answers))}</div>\n'
        f"{_unverified(document.unverified)}<nav>{links}</nav>\n"
        f"{''.join(map(_section, document.sections))}</main>\n</body>\n</html>\n"
    )


def _notice(words: str) -> str:
    return f'<p class="notice" role="alert"><strong>Mind:</strong> {escape(words)}</p>\n'


def _answer(answer: Answer) -> str:
    mark = MARKS[answer.verdict]
    return (
        f'<section class="answer {answer.verdict}"><h2>{escape(answer.question)} '
        f'<span aria-hidden="true">{mark}</span></h2>'
        f'<p class="figure">{escape(answer.figure)}</p><p>{escape(answer.detail)}</p></section>\n'
    )


def _unverified(items: tuple[str, ...]) -> str:
    if not items:
        return '<aside class="unverified"><p>Nothing is known to be unverified.</p></aside>\n'
    return f'<aside class="unverified"><h2>Not verified</h2>{_part(Bullets(items))}</aside>\n'


def _section(section: Section) -> str:
    body = "\n".join(_part(part) for part in section.parts)
    return (
        f'<section id="{escape(section.anchor)}">\n<h2>{escape(section.heading)}</h2>\n'
        f"{body}\n</section>\n"
    )


def _part(part: Part) -> str:
    match part:
        case Paragraph(words):
            return f"<p>{escape(words)}</p>"
        case Bullets(items):
            return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"
        case Code(words):
            return f"<pre><code>{escape(words)}</code></pre>"
        case Picture(_, svg, caption):
            return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
        case Table():
            return _table(part)


def _table(table: Table) -> str:
    def cell(place: int, words: str, tag: str) -> str:
        number = ' class="number"' if place in table.numeric else ""
        return f"<{tag}{number}>{escape(words)}</{tag}>"

    def row(cells: tuple[str, ...], tag: str) -> str:
        return f"<tr>{''.join(cell(i, words, tag) for i, words in enumerate(cells))}</tr>"

    head = f"<thead>{row(table.head, 'th')}</thead>" if any(table.head) else ""
    body = "".join(row(cells, "td") for cells in table.rows)
    return f'<div class="table"><table>{head}<tbody>{body}</tbody></table></div>'
