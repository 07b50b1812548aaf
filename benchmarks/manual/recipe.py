"""``docs/reference/recipe.md``: every key of a recipe and every preset, from the code."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from benchmarks.manual.commands import names_of
from benchmarks.manual.words import attributes, summary, table, type_words, value_words
from trt_layermerge.cli.app import VERBS
from trt_layermerge.finetune.recipe import DEVIATIONS, MEANINGS, PRESETS, FinetuneRecipe
from trt_layermerge.pipeline.recipe import Recipe
from trt_layermerge.quantize.preset import Preset, load_preset

CALIBRATION = Path(__file__).parents[2] / "calib" / "presets"

HEAD = """\
# Every key of a recipe

```yaml
model: {name: "timm:resnet18", weights: net.safetensors}
data: {train: "imagefolder:data/train", val: "imagefolder:data/val", test: "imagefolder:data/test"}
search: {speedup: 1.5}
```

is a whole recipe: whatever it leaves out has the default below. On the command line a key is typed
as `--set search.finalists=6`, and a list as `--set build.precisions=[fp16,int8]`; some keys have an
option of their own, which stands below them. An unknown key is refused. This page is made of the
code by `python -m benchmarks.manual`.
"""

GUIDES = {
    "model": "[Data and models](../data.md#models)",
    "data": "[Data and models](../data.md)",
    "measure": "[Measuring elsewhere](../measuring-elsewhere.md)",
    "importance": "[A large network in minutes](../scaling.md#a-large-network-in-minutes)",
    "calibrate": "[Calibration](../../calib/README.md)",
    "package": "[Deploying](../deploying.md)",
    "scale": "[More processes, more machines](../scaling.md)",
    "task": "[Inputs and outputs](../outputs.md)",
}


def recipe_page() -> str:
    """Returns the page."""
    options = option_names()
    top, sections = [], []
    for name, kind, default, meaning in sorted(
        keys(Recipe), key=lambda key: key[0] not in ("model", "data")
    ):
        if isinstance(default, BaseModel) or isinstance(kind, type):
            sections += [f"## `{name}`", "", *_section(name, kind, options), ""]
        else:
            top.append((name, kind, default, meaning))
    rows = [_row(*key, options) for key in top]
    sections += ["## Beside the sections", "", _keys(rows), ""]
    return "\n".join([HEAD, *sections, *_training(), "", *_calibration()]) + "\n"


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Yields each key of a section with its type, its default and its meaning.

    The type of a key that is a section is that section, a class; of any other it is in words.

    Args:
        model: The section.
        prefix: What its keys begin with.
    """
    meanings = {name: said for base in reversed(model.__mro__) for name, said in _said(base)}
    for name, field in model.model_fields.items():
        section = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        kind = field.annotation if section else type_words(field.annotation, field.metadata)
        yield f"{prefix}{name}", kind, field.default, meanings.get(name, "")


def _said(base: type) -> Sequence[tuple[str, str]]:
    return list(attributes(base).items()) if issubclass(base, BaseModel) else []


def flat(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, Any, str]]:
    """Yields the keys of a section and of those within it, as ``keys`` does."""
    for name, kind, default, meaning in keys(model, prefix):
        if isinstance(kind, type):
            yield from flat(kind, f"{name}.")
        else:
            yield name, kind, default, meaning


def _section(name: str, model: type[BaseModel], options: Mapping[str, str]) -> list[str]:
    guide = f" See {GUIDES[name]}." if name in GUIDES else ""
    rows = [_row(*key, options) for key in flat(model, f"{name}.")]
    return [summary(model) + guide, "", _keys(rows)]


def _keys(rows: list[Sequence[str]]) -> str:
    return table(("key", "type", "default", "meaning"), rows)


def _row(
    name: str, kind: str, default: Any, meaning: str, options: Mapping[str, str]
) -> Sequence[str]:
    shown = "must be given" if default is PydanticUndefined else value_words(default)
    typed = f"<br>`{options[name]}`" if name in options else ""
    return f"`{name}`{typed}", kind, shown, meaning


def option_names() -> dict[str, str]:
    """Returns the options that set a key, by key; one of a single verb is named with it."""
    verbs = defaultdict(set)
    for verb in VERBS:
        for each in fields(get_type_hints(verb)["options"]):
            verbs[each.metadata.get("key"), names_of(each)[0]].add(verb.__name__)
    return {
        key: typed if len(who) > 1 else f"{next(iter(who))} {typed}"
        for (key, typed), who in sorted(verbs.items(), key=lambda item: -len(item[1]))
        if key is not None
    }


def _training() -> list[str]:
    """Returns what ``finetune.preset`` names, and what ``finetune.options`` replaces."""
    hints, said = get_type_hints(FinetuneRecipe), attributes(FinetuneRecipe)
    values = {name: recipe.to_json() for name, recipe in PRESETS.items()}
    first = next(iter(values))
    names = [field.name for field in fields(FinetuneRecipe)]
    short = values[first]
    differing = [
        (f"`{name}`", *(value_words(body[name]) for body in values.values()))
        for name in names
        if any(body[name] != short[name] for body in values.values())
    ]
    return [
        "## Presets of training",
        "",
        "`finetune.preset` names one; `finetune.options` replaces values of it.",
        "",
        table(
            ("preset", "what it is"),
            [(f"`{name}`", _meaning(name)) for name in MEANINGS],
        ),
        "",
        "Where they differ:",
        "",
        table(("value", *(f"`{name}`" for name in values)), differing),
        "",
        "### `finetune.options` and `importance.finetune`",
        "",
        table(
            ("key", "type", f"of `{first}`", "meaning"),
            [(f"`{n}`", type_words(hints[n]), value_words(short[n]), said[n]) for n in names],
        ),
    ]


def _meaning(preset: str) -> str:
    if preset not in DEVIATIONS:
        return MEANINGS[preset]
    return f"{MEANINGS[preset]} Other than published: {DEVIATIONS[preset]}."


def _calibration() -> list[str]:
    """Returns the presets of int8, and what ``calibrate.options`` replaces."""
    hints, said = get_type_hints(Preset, include_extras=True), attributes(Preset)
    default = Preset().to_json()
    files = {path.name: load_preset(path, {}).to_json() for path in CALIBRATION.glob("*.yaml")}
    rows = []
    for name, body in sorted(files.items()):
        other = [f"`{key}: {value}`" for key, value in body.items() if value != default[key]]
        rows.append((f"[`{name}`](../../calib/presets/{name})", ", ".join(other) or "as built in"))
    return [
        "## Presets of int8",
        "",
        "`calibrate.preset` names a file; `calibrate.options` replaces values of it.",
        "",
        table(("file", "what differs"), rows),
        "",
        "### `calibrate.options`",
        "",
        table(
            ("key", "type", "built in", "meaning"),
            [(f"`{n}`", type_words(hints[n]), value_words(default[n]), said[n]) for n in default],
        ),
    ]
