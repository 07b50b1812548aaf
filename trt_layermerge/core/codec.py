"""Frozen dataclasses to JSON-ready mappings and back, by their annotations (pydantic).

For files that the host writes and reads: the agent and ``verify.py`` of a bundle run where pydantic
is not installed, and do without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, TypeVar, cast

from pydantic import Field, TypeAdapter, ValidationError

from trt_layermerge.core.jsonio import Json

T = TypeVar("T")

Finite = Annotated[float, Field(allow_inf_nan=False)]
"""A number that is neither nan nor infinite."""


adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)
"""Returns what checks and writes values of a type, made once."""


def dump(value: Any) -> Json:
    """Returns the fields of a dataclass as plain JSON values, lists in place of tuples."""
    body: Json = adapter(type(value)).dump_python(value, mode="json")
    return body


def load(kind: type[T], body: Any) -> T:
    """Returns the dataclass that ``dump`` wrote; keys that it does not have are left out.

    Args:
        kind: The dataclass. All its fields must be there, even those with a default.
        body: The mapping.

    Raises:
        TypeError: If it is no mapping.
        ValueError: If a field is missing or malformed; names the first one.
    """
    if not isinstance(body, Mapping):
        raise TypeError(f"{body!r:.100} is no JSON object")
    absent = [f.name for f in fields(cast(Any, kind)) if f.name not in body]
    if absent:
        raise ValueError(f"there is no {absent[0]}")
    try:
        found: T = adapter(kind).validate_python(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return found
