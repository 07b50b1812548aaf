"""One file per kind of candidate; a new kind is a new file here and nothing else.

Each module offers ``RULES``, the rule sets it belongs to, and

    candidates(graph: LayerGraph, block: Block, limits: Limits) -> Iterator[Candidate]
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import Protocol, cast

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.unit import Block, Rules
from trt_layermerge.search.limits import Limits


class Kind(Protocol):
    """What a module of this folder offers."""

    RULES: tuple[Rules, ...]

    def candidates(self, graph: LayerGraph, block: Block, limits: Limits) -> Iterator[Candidate]:
        """Yields the ways to replace one block."""


def kinds_of(rules: Rules) -> tuple[Kind, ...]:
    """Returns the kinds that a rule set uses, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = (cast(Kind, import_module(f"{__name__}.{name}")) for name in names)
    return tuple(module for module in modules if rules in module.RULES)
