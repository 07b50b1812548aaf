"""Pages that are made from the code are what the code says."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Annotated, Literal, get_type_hints

import pytest
from pydantic import Field

from benchmarks.manual import recipe as pages
from benchmarks.manual.commands import names_of
from benchmarks.manual.pages import PAGES, ROOT
from benchmarks.manual.words import attributes, summary, type_words, value_words
from trt_layermerge.cli.app import VERBS, unused
from trt_layermerge.cli.main import main
from trt_layermerge.finetune.recipe import MEANINGS, PRESETS
from trt_layermerge.pipeline.recipe import Recipe
from trt_layermerge.session.settings import Section


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_what_the_code_says(path: str) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == PAGES[path](), (
        "type: python -m benchmarks.manual"
    )


def test_every_key_is_there_and_has_a_meaning() -> None:
    text = PAGES["docs/reference/recipe.md"]()
    defaults = Recipe.model_validate({"model": {"name": "timm:resnet18"}}).model_dump()
    named = set(re.findall(r"^\| `([\w.]+)`", text, re.MULTILINE))
    assert set(_leaves(defaults)) <= named
    without = [key for key, *_, meaning in pages.flat(Recipe, "") if not meaning]
    assert without == []


def _leaves(body: dict[str, object], prefix: str = "") -> list[str]:
    found = []
    for key, value in body.items():
        if isinstance(value, dict) and value:
            found += _leaves(value, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}")
    return found


def test_every_preset_has_a_meaning() -> None:
    assert MEANINGS.keys() == {*PRESETS, "none"}


class Sample(Section):
    """Says this. And that.

    Attributes:
        size: How large, over
            two lines; None for any (``some.module.NAME``).
    """

    size: Annotated[int, Field(ge=1)] | None = None


def test_types_defaults_and_meanings_are_read_from_a_class() -> None:
    assert list(pages.keys(Sample, "s.")) == [
        (
            "s.size",
            "whole number ≥ 1, or `null`",
            None,
            "How large, over two lines; `null` for any.",
        )
    ]
    assert summary(Sample) == "Says this. And that."
    assert attributes(dataclass(type("Bare", (), {}))) == {}
    assert type_words(tuple[Literal["a", "b"], ...]) == "list: `a` \\| `b`"
    assert [value_words(v) for v in (None, True, 0.1, "x", (1, 2), "a:1", ())] == [
        *("`null`", "`true`", "`0.1`", "`x`", "`[1, 2]`", "`a:1`", "`[]`"),
    ]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_every_option_is_named_as_help_names_it(
    verb: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert main([verb.__name__, "--help"]) == 0  # type: ignore[attr-defined]
    said = capsys.readouterr().out
    for each in fields(get_type_hints(verb)["options"]):
        for name in names_of(each):
            listed = re.search(rf"(?<![\w-]){name}(?![\w-])", said, re.IGNORECASE)
            assert bool(listed) == (each.name not in unused(verb)), name  # type: ignore[arg-type]
