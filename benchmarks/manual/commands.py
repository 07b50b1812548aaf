"""``docs/reference/commands.md``: every verb with its options, from what the command line reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from annotated_types import Ge
from typer.models import ArgumentInfo

from benchmarks.manual.words import summary, table, type_words
from trt_layermerge.cli.app import EXIT_CODES, VERBS
from trt_layermerge.cli.options import OutputOptions, SharedOptions, StageOptions
from trt_layermerge.cli.verb import SETTINGS

HEAD = """\
# Every command

```console
trt-layermerge VERB --help
```

says in the terminal what a verb uses. `run` does every stage of a recipe in order; each stage is a
verb of its own too, leaves its [files](../files.md) in the run's folder and continues after Ctrl-C.
What an option sets is a [key of the recipe](recipe.md), and the run remembers it. Shells complete
verbs and options after `trt-layermerge --install-completion`. This page is made of the code by
`python -m benchmarks.manual`.
"""

COMMON: Sequence[tuple[type, str, str]] = (
    (OutputOptions, "Every verb", "What every verb understands:"),
    (
        SharedOptions,
        "`run` and every stage",
        "What `run` and every stage take as well, though the help of a stage lists what it uses:",
    ),
    (StageOptions, "Every stage", "What every stage takes as well:"),
)
"""Options that many verbs share, from the most common to the least, with their titles."""


def commands_page() -> str:
    """Returns the page."""
    parts = [HEAD]
    for number, (options, title, words) in enumerate(COMMON):
        inherited = COMMON[number - 1][0] if number else object
        parts += [f"## {title}", "", words, "", options_table(options, inherited), ""]
    for verb in VERBS:
        parts += [f"## `{verb.__name__}`", "", *_verb(verb), ""]
    codes = EXIT_CODES.partition(": ")[2].rstrip(".").split(", ")
    rows = [(f"`{code}`", words) for code, _, words in (each.partition(" ") for each in codes)]
    parts += ["## Exit codes", "", table(("code", "meaning"), rows)]
    return "\n".join(parts) + "\n"


def _verb(verb: Callable[[Any], None]) -> list[str]:
    options = get_type_hints(verb)["options"]
    common, title, _ = next(each for each in reversed(COMMON) if issubclass(options, each[0]))
    own = options_table(options, common)
    anchor = title.lower().replace("`", "").replace(" ", "-")
    rest = (
        f"Beside these: those of [{title.lower()}](#{anchor})."
        if own
        else (f"It has the options of [{title.lower()}](#{anchor}).")
    )
    return [summary(verb), "", *([own, ""] if own else []), rest]


def options_table(options: type, inherited: type) -> str:
    """Returns the options of a verb that it does not share with others, or nothing.

    Args:
        options: A dataclass whose fields are the options.
        inherited: The dataclass of those that are shared.
    """
    shared = [] if inherited is object else list(fields(inherited))
    hints = get_type_hints(options)
    own = [each for each in fields(options) if not any(each is one for one in shared)]
    rows = [_row(each, hints[each.name]) for each in own]
    return table(("option", "value", "meaning", "key"), rows) if rows else ""


def _row(each: Field[Any], hint: Any) -> Sequence[str]:
    shown, key = each.metadata["typer"], each.metadata.get("key")
    words = shown.help.replace("|", "\\|")
    if each.default is MISSING:
        words += " Must be given."
    elif isinstance(each.default, Path):
        words += f" By default `{each.default}`."
    named = key not in (None, SETTINGS)
    typed = ", ".join(f"`{name}`" for name in names_of(each))
    return typed, _value(shown, hint), words, f"`{key}`" if named else ""


def names_of(each: Field[Any]) -> Sequence[str]:
    """Returns how an option or an argument is typed."""
    shown = each.metadata["typer"]
    if isinstance(shown, ArgumentInfo):
        return (each.name.upper(),)
    # Within Annotated, Typer takes the first name as it would take a default.
    typed = [name for name in (shown.default, *(shown.param_decls or ())) if isinstance(name, str)]
    return typed or (f"--{each.name.replace('_', '-')}",)


def _value(shown: Any, hint: Any) -> str:
    """Returns what is typed behind an option, or nothing for a switch."""
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    if shown.metavar:
        return f"`{shown.metavar}`".replace("|", "\\|")
    if bool in kinds or getattr(shown, "count", False):
        return ""
    if Path in kinds:
        return "a path"
    return type_words(kinds[0], () if shown.min is None else (Ge(shown.min),))
