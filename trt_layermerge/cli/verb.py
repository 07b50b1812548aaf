"""A verb is a function of one frozen dataclass; its fields become the options.

So options that many verbs share are written once, and the recipe key that an option overrides
stands beside it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, get_args, get_type_hints

import typer
import yaml

from trt_layermerge.cli.failures import Interrupted
from trt_layermerge.errors import UsageError


def _as_given(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Key:
    """The recipe key that an option overrides, as an annotation beside ``typer.Option``.

    Attributes:
        path: Dotted key, such as ``measure.batch``.
        convert: Maps what was typed to the value in the recipe.
    """

    path: str
    convert: Callable[[Any], Any] = _as_given


@dataclass(frozen=True)
class Settings:
    """Marks an option that holds recipe keys with their values, each as ``KEY=VALUE``."""


def overrides(options: Any) -> dict[str, Any]:
    """Returns the recipe overrides of the options that were given, by dotted key.

    Raises:
        UsageError: If a setting is not ``KEY=VALUE``.
    """
    hints = get_type_hints(type(options), include_extras=True)
    given: dict[str, Any] = {}
    for name, hint in hints.items():
        value = getattr(options, name)
        for mark in get_args(hint)[1:]:
            if isinstance(mark, Key) and value is not None:
                given[mark.path] = mark.convert(value)
            elif isinstance(mark, Settings):
                given |= dict(_setting(text) for text in value or ())
    return given


def _setting(text: str) -> tuple[str, Any]:
    """Returns key and value of ``KEY=VALUE``; the value is read as YAML."""
    key, equals, value = text.partition("=")
    try:
        if not (equals and all(key.split("."))):
            raise ValueError("there must be a key, an equals sign and a value")
        return key, yaml.safe_load(value)
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(
            f"--set {text!r} is not KEY=VALUE ({error}); type it like --set search.finalists=6"
        ) from error


def add_verb(app: typer.Typer, verb: Callable[[Any], None]) -> None:
    """Registers a verb under the name of its function, with its docstring as the help."""
    options = get_type_hints(verb)["options"]
    hints = get_type_hints(options, include_extras=True)

    def command(**values: Any) -> None:
        try:
            verb(options(**values))
        except KeyboardInterrupt as error:
            # Typer would end silently, or with another code, depending on its version.
            raise Interrupted from error

    command.__doc__ = inspect.getdoc(verb)
    command.__annotations__ = dict(hints)
    command.__signature__ = inspect.Signature(_parameters(options, hints))  # type: ignore[attr-defined]
    app.command(verb.__name__)(command)


def _parameters(options: Any, hints: Mapping[str, Any]) -> list[inspect.Parameter]:
    """Returns one keyword parameter for every field."""
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(options)
    ]
