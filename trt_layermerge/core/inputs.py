"""What goes into networks that take several inputs, image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trt_layermerge.errors import UsageError

LABELS = ("labels", "label", "target")
"""Keys by which a batch that is a dict may give its labels."""


@dataclass(frozen=True)
class Several:
    """A batch of inputs of a network that takes several; sliced and split like a single one.

    ``parts`` are tensors, or arrays, with one row for each image, in the order of ``forward``.
    """

    parts: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, rows: Any) -> Several:
        return self.map(lambda part: part[rows])

    def map(self, change: Callable[[Any], Any]) -> Several:
        """Returns the same with every input changed."""
        return Several(tuple(map(change, self.parts)))


def parts_of(inputs: Any) -> tuple[Any, ...]:
    """Returns the inputs of a network one by one."""
    return inputs.parts if isinstance(inputs, Several) else (inputs,)


def batch(parts: Sequence[Any]) -> Any:
    """Returns the inputs of a network as one value: the only one itself, or ``Several``."""
    return parts[0] if len(parts) == 1 else Several(tuple(parts))


def joined(batches: Sequence[Any], join: Callable[[Any], Any]) -> Any:
    """Returns batches of inputs as one.

    Args:
        batches: At least one.
        join: Joins tensors, or arrays, such as ``torch.cat``.
    """
    each = zip(*map(parts_of, batches), strict=True)
    return batch([join(parts) for parts in each])


def mapped(change: Callable[[Any], Any], inputs: Any) -> Any:
    """Returns inputs with each one changed."""
    return inputs.map(change) if isinstance(inputs, Several) else change(inputs)


def chunks(inputs: Any, size: int) -> Iterator[Any]:
    """Yields inputs in batches of a size; the last may be smaller."""
    for start in range(0, len(inputs), size):
        yield inputs[start : start + size]


def parse(item: Any, names: Sequence[str]) -> tuple[Several, Any]:
    """Returns the inputs in a batch of somebody's own, and its labels or None.

    A batch is a tuple of the inputs, or of them and labels; a dict of them by name, with
    ``labels`` or without; or a tuple of such a tuple or dict, and labels.

    Args:
        item: The batch.
        names: What the network's inputs are called, in the order of ``forward``.

    Raises:
        UsageError: If inputs are missing, or differ in their number of rows.
    """
    parts, labels = split(item, names)
    rows = {len(part) if getattr(part, "ndim", 0) else None for part in parts}
    if len(parts) != len(names) or len(rows) != 1 or None in rows:
        raise UsageError(
            f"the network takes {len(names)} inputs ({', '.join(names)}), and a batch is a "
            f"{type(item).__name__} of others; give tuples of tensors of as many rows, "
            f"({', '.join(names)}), or dicts of them by these names, with labels behind them or not"
        )
    return Several(tuple(parts)), labels


def split(item: Any, names: Sequence[str]) -> tuple[list[Any], Any]:
    """Returns those of the named inputs that an item or a batch has, and its labels or None.

    Args:
        item: Inputs, or a pair of inputs and labels.
        names: What the network's inputs are called, in the order of ``forward``.
    """
    given, rest = item, list[Any]()
    pair = isinstance(item, tuple | list) and len(item) > 0
    if pair and isinstance(item[0], Several | Mapping | tuple | list):
        given, *rest = item
    if isinstance(given, Several):
        parts = list(given.parts)
    elif isinstance(given, Mapping):
        parts = [given[name] for name in names if name in given]
        rest = rest or [given[key] for key in LABELS if key in given]
    else:
        every = list(given) if isinstance(given, tuple | list) else [given]
        parts, rest = every[: len(names)], rest or every[len(names) :]
    return parts, next(iter(rest), None)
