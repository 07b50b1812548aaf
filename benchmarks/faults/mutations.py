"""Content → damaged content: what disks, transfers, editors and attackers do to a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any, TypeAlias

Change: TypeAlias = Callable[[bytearray, Random], None]

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**70,
    1e308,
    -0.5,
    float("nan"),
    float("inf"),
    "",
    "x" * 3000,
    "\ud800",
    "../../etc/passwd",
    [],
    [[]],
    {},
    {"a": {"b": 1}},
)
"""What no field expects."""


def _flip(data: bytearray, rng: Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _flip_early(data: bytearray, rng: Random) -> None:
    data[rng.randrange(min(len(data), 200))] ^= 1 << rng.randrange(8)


def _replace(data: bytearray, rng: Random) -> None:
    for _ in range(rng.randrange(1, 9)):
        data[rng.randrange(len(data))] = rng.randrange(256)


def _cut(data: bytearray, rng: Random) -> None:
    del data[rng.randrange(len(data)) :]


def _drop(data: bytearray, rng: Random) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.randrange(1, 65)]


def _double(data: bytearray, rng: Random) -> None:
    start = rng.randrange(len(data))
    data[start:start] = data[start : start + rng.randrange(1, 65)]


def _zero(data: bytearray, rng: Random) -> None:
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.randrange(1, 513))
    data[start:stop] = bytes(stop - start)


def _insert(data: bytearray, rng: Random) -> None:
    start = rng.randrange(len(data))
    data[start:start] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 17)))


CHANGES: dict[str, Change] = {
    change.__name__.strip("_"): change
    for change in (_flip, _flip_early, _replace, _cut, _drop, _double, _zero, _insert)
}


def mutated(data: bytes, rng: Random) -> tuple[str, bytes]:
    """Returns what was done to some content, and the other content that it became.

    Half of the changes of JSON, whole or by lines, are changes of its values.

    Args:
        data: The content, not empty.
        rng: Decides which change.
    """
    lines = _objects(data)
    if lines and rng.random() < 0.5:
        number = rng.randrange(len(lines))
        sound, said = lines[number], ""
        while repr(lines[number]) == repr(sound):
            lines[number], said = _odd(sound, rng)
        return said, "".join(json.dumps(line) + "\n" for line in lines).encode()
    name = rng.choice(sorted(CHANGES))
    changed = bytearray(data)
    while changed == data:
        CHANGES[name](changed, rng)
    return name, bytes(changed)


def _objects(data: bytes) -> list[Any]:
    """Returns the JSON values of a file, one for each line or one in all; none where it is none."""
    try:
        text = data.decode()
        whole = text.startswith("{\n") or text.startswith("[")
        return [json.loads(text)] if whole else [json.loads(x) for x in text.splitlines() if x]
    except ValueError:
        return []


def _odd(value: Any, rng: Random) -> tuple[Any, str]:
    """Returns a value with one part of it replaced, or a key or an item taken out."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.1:
        return rng.choice(ODD), "replaced"
    place: Any = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if rng.random() < 0.15:
        rest = value.copy()
        del rest[place]
        return rest, f"without {place}"
    found, said = _odd(value[place], rng)
    changed = value.copy()
    changed[place] = found
    return changed, f"{place}: {said}"
