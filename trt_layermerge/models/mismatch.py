"""Why weights do not fit a network: what both sides call things, and a guess at what happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import median

from torch import Tensor

SHOWN = 3
"""Names of each side that a message shows."""

MOST = 0.5
"""Share of the names or shapes that must agree with a guess."""


def sides(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Returns what the file has and the network lacks, and the other way round; "" if nothing.

    Args:
        weights: Tensors of the file by name.
        wanted: Those of the network.
    """
    told = [
        f"{_some(names, tensors)} {'are' if names[1:] else 'is'} {words}"
        for tensors, others, words in (
            (wanted, weights, "missing from the file"),
            (weights, wanted, "not in the network"),
        )
        if (names := sorted(tensors.keys() - others.keys()))
    ]
    return "; ".join(told)


def _some(names: Sequence[str], tensors: Mapping[str, Tensor]) -> str:
    shown = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if names[SHOWN:] else shown


def guess(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Returns what probably happened and what to do, beginning with "; ", or "" if nobody knows.

    Arguments are those of ``sides``.
    """
    extra, missing = weights.keys() - wanted.keys(), wanted.keys() - weights.keys()
    if extra and missing and (renamed := _prefixed(extra, missing, weights, wanted)):
        return f"; {renamed}"
    shapes = {
        name: (weights[name].shape, wanted[name].shape) for name in weights.keys() & wanted.keys()
    }
    others = [name for name, (found, own) in shapes.items() if found != own]
    if len(shapes) < MOST * len(wanted):
        return "; few names agree: the file is of another architecture (--model)"
    if others and not missing and (last := _head(others, wanted)):
        found, own = shapes[last]
        return (
            f"; only the last layer differs: the file answers with {found[0]} values and the "
            f"network with {own[0]}; make the network with as many ({last.rpartition('.')[0]})"
        )
    if len(others) > MOST * len(shapes) and (factor := _wider([shapes[name] for name in others])):
        return f"; the file is of a network {factor:.3g} times as wide; name that one (--model)"
    if not others and bool(extra) != bool(missing):
        more = "more" if extra else "fewer"
        return f"; all else fits: the file is of a network with {more} layers, or with another head"
    return "; the file is of another network (--model)" if len(others) > MOST * len(shapes) else ""


def _prefixed(
    extra: Collection[str],
    missing: Collection[str],
    weights: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
) -> str | None:
    """Returns what to type where names differ by what stands in front of them."""
    for longer, shorter, tensors, others, advice in (
        (extra, missing, weights, wanted, "{{k.removeprefix({0!r}): v for k, v in state.items()}}"),
        (missing, extra, wanted, weights, "{{{0!r} + k: v for k, v in state.items()}}"),
    ):
        fronts = Counter(
            name.removesuffix(rest)
            for name in longer
            for rest in _ends(name)
            if rest in shorter and tensors[name].shape == others[rest].shape
        )
        front, count = max(fronts.items(), key=lambda item: item[1], default=("", 0))
        if count > MOST * len(shorter):
            side = "the file" if longer is extra else "the network"
            return (
                f"{count} names differ by {front!r}, which {side} has in front of them; save "
                f"the file again with {advice.format(front)}"
            )
    return None


def _ends(name: str) -> Iterable[str]:
    """Yields the parts of a dotted name from every dot on."""
    while "." in name:
        name = name.partition(".")[2]
        yield name


def _head(others: Collection[str], wanted: Mapping[str, Tensor]) -> str | None:
    """Returns the weight of the last layer if nothing else has another shape."""
    module = [*wanted][-1].rpartition(".")[0]
    if any(name.rpartition(".")[0] != module for name in others):
        return None
    return next((name for name in others if wanted[name].ndim > 1), next(iter(others), None))


def _wider(pairs: Iterable[tuple[tuple[int, ...], tuple[int, ...]]]) -> float | None:
    """Returns by how much the sizes of one side are those of the other, where most agree."""
    ratios = [
        found[0] / own[0] for found, own in pairs if len(found) == len(own) and found and own[0]
    ]
    if not ratios:
        return None
    middle = median(ratios)
    alike = sum(abs(ratio / middle - 1) < 0.2 for ratio in ratios)
    return middle if middle != 1 and alike > MOST * len(ratios) else None
