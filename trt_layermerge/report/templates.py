"""The templates of pages and pictures; numbers are written by the functions of ``text``."""

from __future__ import annotations

import re
from functools import cache, partial
from html import escape
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from trt_layermerge.report import palette, text

FORMATS = "count decimal milliseconds percent percents plain quantity ratio seconds signed_percent"
BLOCK = "\x1e"
"""Begins a block of Markdown: blank lines are set between blocks, and nowhere else."""


def render(template: str, /, **values: Any) -> str:
    """Returns a template filled with values, which are escaped for HTML unless it is Markdown's.

    Args:
        template: Name of a file in ``templates``, without ``.j2``.
        **values: What the template names.
    """
    return (
        _environment(not template.endswith((".md", ".js")))
        .get_template(f"{template}.j2")
        .render(values)
    )


@cache
def _environment(autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("trt_layermerge.report"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(text, name) for name in FORMATS.split()}
    environment.filters |= {"literal": literal, "fence": fence}
    links = {"link": partial(link, html=autoescape)}
    environment.globals |= {"palette": palette, "BLOCK": BLOCK, **links}
    return environment


def link(words: str, stem: str, *, html: bool) -> Markup:
    """Returns a link to a page that there is as HTML and as Markdown, in the language of the page.

    Args:
        words: What is to be seen.
        stem: The address up to the page's suffix, quoted.
        html: The language.
    """
    if html:
        return Markup('<a href="{}html">{}</a>').format(stem, words)
    return Markup(f"[{literal(words)}]({stem}md)")


def literal(words: str) -> str:
    """Returns text on one line that Markdown and HTML take literally; links stay links."""
    if isinstance(words, Markup):
        return words
    return re.sub(r"([\\`*_\[\]#|~$])", r"\\\1", escape(" ".join(words.split()), quote=False))


def fence(words: str) -> str:
    """Returns the backquotes that may stand around text in Markdown: more than it has in a row."""
    return "`" * max(3, 1 + max(map(len, re.findall("`+", words)), default=0))
