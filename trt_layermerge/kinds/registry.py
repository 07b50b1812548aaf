"""Which kinds there are."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.unit import Rules
from trt_layermerge.errors import UsageError
from trt_layermerge.kinds.compose import Compose
from trt_layermerge.kinds.fit import Fit
from trt_layermerge.kinds.identity import Identity
from trt_layermerge.kinds.kind import FAMILIES, Kind
from trt_layermerge.kinds.lowrank import LowRank
from trt_layermerge.kinds.narrow import Narrow
from trt_layermerge.kinds.stream import StreamWidth

_KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (Compose(), Fit(), Identity(), LowRank(), Narrow(), StreamWidth())
}


def register(kind: Kind) -> AbstractContextManager[Any]:
    """Adds a kind at once, for this process; leaving the context that is returned takes it out.

    Raises:
        ValueError: If there is a kind of this name.
    """
    if kind.name in _KINDS:
        raise ValueError(f"there is a kind named {kind.name!r} already")
    _KINDS[kind.name] = kind
    undo = ExitStack()
    undo.callback(_KINDS.pop, kind.name)
    return undo


def kind_of(candidate: Candidate) -> Kind:
    """Returns the kind of a candidate.

    Raises:
        UsageError: If this version knows no kind of that name.
    """
    if candidate.kind not in _KINDS:
        raise UsageError(
            f"{candidate} is of the kind {candidate.kind!r}, and this version knows "
            f"{', '.join(_KINDS)}; what wrote it was a newer one: install that "
            "(pip install --upgrade trt-layermerge), or make the candidates anew (inspect)"
        )
    return _KINDS[candidate.kind]


def kinds_of(rules: Rules | None = None) -> tuple[Kind, ...]:
    """Returns the kinds that a rule set uses, by name; all kinds if None."""
    return tuple(kind for _, kind in sorted(_KINDS.items()) if rules in (None, *kind.rules))


def usual_kinds() -> tuple[str, ...]:
    """Returns the names of the kinds that ``rules="full"`` uses where none are named."""
    return tuple(kind.name for kind in kinds_of("full"))


def kinds_named(rules: Rules, names: Iterable[str] | None = None) -> tuple[Kind, ...]:
    """Returns the kinds to use, by name: of a rule set, or the named ones.

    Args:
        rules: ``paper`` uses its own kinds and no others, ``full`` any.
        names: Which kinds; None for those of the rule set.

    Raises:
        UsageError: If there is no kind of a name.
    """
    if names is None:
        return kinds_of(rules)
    named = set(names)
    if unknown := sorted(named - _KINDS.keys()):
        raise UsageError(
            f"there is no kind {', '.join(map(repr, unknown))}; search.kinds names some of "
            f"{', '.join(sorted(_KINDS))}"
        )
    chosen = kinds_of("paper") if rules == "paper" else kinds_of()
    return tuple(kind for kind in chosen if kind.name in named)


def families() -> tuple[tuple[str, ...], ...]:
    """Returns the names of the kinds that plans may be made of: all, then fewer and fewer."""
    ranked = [(name, FAMILIES.index(kind.family)) for name, kind in sorted(_KINDS.items())]
    ranks = sorted({rank for _, rank in ranked}, reverse=True)
    return tuple(tuple(n for n, rank in ranked if rank <= highest) for highest in ranks)


def refusal(graph: LayerGraph, candidate: Candidate) -> str | None:
    """Returns why a candidate cannot stand in a graph, or None if it can. Needs no weights.

    Raises:
        UsageError: If its kind is unknown.
    """
    return kind_of(candidate).refusal(graph, candidate)
