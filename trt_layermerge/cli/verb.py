"""A verb is a function of one frozen dataclass; its fields become the options.

So options that many verbs share are written once, and the recipe key that an option overrides
stands beside it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from copy import copy
from dataclasses import MISSING, Field, field, fields
from typing import Annotated, Any, get_type_hints

import typer
import yaml

from trt_layermerge.core.strict_yaml import load_yaml
from trt_layermerge.errors import UsageError, words_of

SETTINGS = "*"
"""Key of the option that holds keys of the recipe with their values, each as ``KEY=VALUE``."""


class Interrupted(Exception):
    """Ctrl-C while a verb worked."""


class Ended(Exception):
    """``SystemExit`` while a verb worked: not ours, so it came from a user's own code."""


def option(
    text: str,
    *names: str,
    default: Any = None,
    key: str | None = None,
    convert: Callable[[Any], Any] = lambda value: value,
    panel: str | None = None,
    **settings: Any,
) -> Any:
    """Returns a field that becomes an option.

    Args:
        text: Its line of help.
        names: What is typed, where that is not the field's own name.
        default: What it is unless typed; ``MISSING`` where it must be.
        key: The key of the recipe that it overrides, such as ``measure.batch``, or None.
        convert: Maps what was typed to the value in the recipe.
        panel: Title that it stands below.
        settings: What else ``typer.Option`` takes.
    """
    shown = typer.Option(*names, help=text, rich_help_panel=panel, **settings)
    return field(default=default, metadata={"typer": shown, "key": key, "convert": convert})


def argument(text: str, *, default: Any = None, **settings: Any) -> Any:
    """Returns a field that becomes an argument without a name; ``option`` tells the rest."""
    return field(default=default, metadata={"typer": typer.Argument(help=text, **settings)})


def overrides(options: Any) -> dict[str, Any]:
    """Returns the recipe overrides of the options that were given, by dotted key.

    Raises:
        UsageError: If a setting is not ``KEY=VALUE``.
    """
    given: dict[str, Any] = {}
    for each in fields(options):
        value, key = getattr(options, each.name), each.metadata.get("key")
        if key == SETTINGS:
            given |= dict(_setting(text) for text in value or ())
        elif key is not None and value is not None:
            given[key] = each.metadata["convert"](value)
    return given


def _setting(text: str) -> tuple[str, Any]:
    """Returns key and value of ``KEY=VALUE``; the value is read as YAML."""
    key, equals, value = text.partition("=")
    try:
        if not (equals and all(key.split("."))):
            raise ValueError("there must be a key, an equals sign and a value")
        return key, load_yaml(value)
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(
            f"--set {text!r} is not KEY=VALUE ({error}); type it like --set search.finalists=6"
        ) from error


def _listed(each: Field[Any], listed: bool) -> Any:
    """Returns what Typer makes an option of, or one that its help leaves out."""
    shown = copy(each.metadata["typer"])
    shown.hidden = shown.hidden or not listed
    return shown


def add_verb(app: typer.Typer, verb: Callable[[Any], None], unlisted: Collection[str] = ()) -> None:
    """Registers a verb under the name of its function, with its docstring as the help.

    Args:
        app: Where.
        verb: A function of one dataclass.
        unlisted: Fields whose options are taken, and are not in the help.
    """
    options = get_type_hints(verb)["options"]
    hints = get_type_hints(options)
    parameters = [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if each.default is MISSING else each.default,
            annotation=Annotated[hints[each.name], _listed(each, each.name not in unlisted)],
        )
        for each in fields(options)
    ]

    def command(**values: Any) -> None:
        try:
            verb(options(**values))
        except KeyboardInterrupt as error:
            # Typer would end silently, or with another code, depending on its version.
            raise Interrupted from error
        except SystemExit as end:  # Typer would take it for the end of its own
            raise Ended(words_of(end)) from end

    command.__doc__ = inspect.getdoc(verb)
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    app.command(verb.__name__)(command)
