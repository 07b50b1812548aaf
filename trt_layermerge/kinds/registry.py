"""Which kinds there are."""

from __future__ import annotations

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

_KINDS: dict[str, Kind] = {kind.name: kind for kind in (Compose(), Fit(), Identity())}


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
