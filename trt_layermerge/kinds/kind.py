"""What a kind of candidate is: everything that it needs in its life, in one place."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Literal, TypeAlias

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.geometry import chain_refusal, composition_refusal
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.unit import Block, Rules
from trt_layermerge.kinds.limits import Limits, fit_refusal

if TYPE_CHECKING:
    from trt_layermerge.blocks import RelaxedBlock, Start
    from trt_layermerge.tracing import TracedNetwork

Family: TypeAlias = Literal["removal", "composition", "reduction", "approximation"]
"""What a candidate does to the network's function, the rank of its kind in ``FAMILIES``."""

FAMILIES: tuple[Family, ...] = ("removal", "composition", "reduction", "approximation")
"""In the order in which plans may use them: removals alone, then compositions too, then
reductions, which keep every activation and have fewer channels or ranks, then all.
Approximations lose least before training and compound; what is only removed loses most, and
training brings most of it back, so plans of each family are compared once trained."""

LEAST_SQUARES = ("ls-zero", "ls-identity", "ls-variance")
"""Repairs that fit a block's last convolution."""


class Kind(ABC):
    """A way to replace blocks: by default, by new convolutions in a row.

    A kind of that sort gives its name, its candidates and, where the weights are not to be drawn
    at random, their ``starts``. Every other stage asks the kind, or the block that it makes, and
    never for a name. Torch is imported where it is needed, so that searching loads none.

    Attributes:
        name: As in ``Candidate.kind``, in files and on the command line.
        label: What became of a block, in a few words, for the report.
        colour: Of its blocks in the report, as ``#rrggbb``.
        rules: Rule sets that it belongs to.
        family: What it does to the network's function; which plans may use it.
        spectral: Whether its weights alone tell how much it leaves out (``weight_error``).
    """

    name: str
    label: str = "replaced"
    colour: str = "#00825d"
    rules: tuple[Rules, ...] = ("full",)
    family: Family = "approximation"
    spectral: bool = False

    @abstractmethod
    def candidates(self, graph: LayerGraph, block: Block, limits: Limits) -> Iterator[Candidate]:
        """Yields the ways to replace one block, made by ``core.candidate.finish``.

        Args:
            graph: The traced network.
            block: Units of one segment, at most ``limits.max_units``.
            limits: Largest block, kernel and kernel sizes to offer.
        """

    def idle(self, graph: LayerGraph, limits: Limits) -> str | None:
        """Returns which wishes of the limits no block of a network can use, or None."""
        return None

    def variants(self, graph: LayerGraph, candidate: Candidate) -> Iterator[Candidate]:
        """Yields what else becomes of a candidate of any kind where this one is used."""
        yield from ()

    def refusal(self, graph: LayerGraph, candidate: Candidate) -> str | None:
        """Returns why a candidate cannot stand in this graph, or None if it can; no weights needed.

        Its convolutions must lead from the block's input to its output, and the last one be small
        enough for a least-squares fit.
        """
        reason = chain_refusal(graph, candidate)
        if reason is not None:
            return reason
        last = candidate.convs[-1]
        return fit_refusal(last.groups, last.in_channels // last.groups * math.prod(last.kernel))

    def starts(self, traced: TracedNetwork, candidate: Candidate) -> Sequence[Start | None]:
        """Returns what each new convolution starts with; nothing given, all are random."""
        return ()

    def replacement(self, traced: TracedNetwork, candidate: Candidate) -> RelaxedBlock:
        """Returns the module of a candidate that is not refused; ``traced`` is left untouched.

        Args:
            traced: The original network with its weights.
            candidate: What the module realises.
        """
        from trt_layermerge.blocks import ConvChain

        network = traced.module
        tensors = chain(network.parameters(), network.buffers())  # fixed weights are buffers
        like = next(tensor for tensor in tensors if tensor.is_floating_point())
        return ConvChain(candidate, like, self.starts(traced, candidate))

    def repairs(self, block: RelaxedBlock) -> tuple[str, ...]:
        """Returns the repairs worth trying on a block that ``replacement`` made.

        ``none`` where the block means something before it is fitted. A block with fits of its own
        is repaired by these. ``bn``, which runs every image
        through the block, is for those without a convolution to fit: it was best for none of 40
        composed blocks of a ResNet-20 that had one.
        """
        if not block.fits and not fittable(block):
            return "none", "bn"
        fits = block.fits or LEAST_SQUARES
        return ("none", *fits) if block.started else fits

    def weight_error(self, traced: TracedNetwork, candidate: Candidate) -> float:
        """Returns ‖W − Ŵ‖₂ / ‖W‖₂ of a candidate, where its kind is ``spectral``."""
        raise NotImplementedError(self.name)


class KeepingKind(Kind):
    """A kind whose blocks keep some of their units and shortcuts, and get nothing new."""

    def refusal(self, graph: LayerGraph, candidate: Candidate) -> str | None:
        """Returns why the kept units do not merge exactly into what the candidate states."""
        return composition_refusal(graph, candidate)

    def replacement(self, traced: TracedNetwork, candidate: Candidate) -> RelaxedBlock:
        """Returns the kept units with copies of their weights."""
        from trt_layermerge.blocks import BridgedBlock, ComposedBlock

        bridged = traced.graph.bridge_at(candidate.block)
        return (BridgedBlock if bridged else ComposedBlock)(traced, candidate)


def fittable(block: RelaxedBlock) -> bool:
    """Whether a block ends with a convolution, and one that is not too large to be fitted."""
    last = block.last
    return last is not None and (fit_refusal(last.conv.groups, last.conv.weight[0].numel()) is None)
