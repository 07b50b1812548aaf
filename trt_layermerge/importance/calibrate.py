"""``calibrate``: how far one replaced block moves the network's answers, without any training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.tables import ImportanceEntry
from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.importance.distance import Distance
from trt_layermerge.importance.seeds import candidate_seed
from trt_layermerge.importance.values import RecordedValues, finish, record, rest_of
from trt_layermerge.merge.block import Ports, RelaxedBlock, block_ports, build_block
from trt_layermerge.merge.relax import retrace
from trt_layermerge.merge.repair import REPAIRS, repair_in_turn
from trt_layermerge.trace import TracedNetwork
from trt_layermerge.trace.activations import activation_module

_FITS = ("ls-zero", "ls-identity", "ls-variance")
APPLICABLE: dict[str, tuple[str, ...]] = {
    "identity": ("none",),
    "compose": ("none", "bn", *_FITS),
    "fit": _FITS,
}
"""Repairs that each kind of candidate may start with."""

WORST = -1000.0
"""Score of a candidate whose answers are not finite after any repair: never worth choosing."""


class CalibrateScorer:
    """Scores a candidate by the distance of the network's answers from the original ones.

    The block is repaired in every way that applies, on ``fit_images``; the best by distance on
    ``score_images`` counts, and its name is kept. Choosing the best of a few on the very images
    that score it makes the score slightly optimistic (a selection effect), alike for all of a kind.
    The original's values at the ends of all blocks are recorded once; a candidate then costs its
    repairs and one run of what follows its block.

    Args:
        model: The trained network; left untouched.
        graph: What was traced of it.
        fit_images: Network inputs ``(N, C, H, W)`` to repair on.
        score_images: Network inputs to score on, disjoint from ``fit_images``.
        repairs: Names of the repairs to try.
        batch: Images a batch.
        limit_bytes: Memory for recorded values, on each of the two sets. Above it, values are
            recomputed batch by batch, and a repair uses as many of the first images as fit.
        seed: Combined with the candidate for whatever a repair draws.

    Attributes:
        notes: What the scores depend on besides model and data; ``distance`` says whether they
            are KL divergences in nats or, where the output is not ``(N, K)``, relative errors.

    Raises:
        UsageError: If the graph is not the model's.
        UnsupportedModelError: If the network takes more than one input.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: LayerGraph,
        fit_images: Tensor,
        score_images: Tensor,
        *,
        repairs: Sequence[str] = REPAIRS,
        batch: int = 64,
        limit_bytes: int = 2 << 30,
        seed: int = 0,
    ) -> None:
        self._traced = retrace(model, graph)
        network = self._traced.module.to(memory_format=torch.channels_last)
        if len(network.graph.find_nodes(op="placeholder")) != 1:
            raise UnsupportedModelError(
                "the network takes more than one input, and candidates are scored on images alone; "
                "wrap it in a module whose forward takes one tensor"
            )
        self._repairs, self._seed, self._limit_bytes = tuple(repairs), seed, limit_bytes
        self._rests = {u.nodes.out: rest_of(network, u.nodes.out) for u in graph.units}
        ends = _block_ends(self._traced)
        context = {name for rest in self._rests.values() for name in rest.needed}
        fit_images, score_images = (
            images.contiguous(memory_format=torch.channels_last)
            for images in (fit_images, score_images)
        )
        self._fit = RecordedValues(network, fit_images, ends, batch, limit_bytes)
        self._score = RecordedValues(network, score_images, ends | context, batch, limit_bytes)
        answers = [record(network, x, ["output"]) for x in torch.split(score_images, batch)]
        self._distance = Distance.to([a["output"] for a in answers])
        self.notes: dict[str, Any] = {
            "method": "calibrate",
            "distance": self._distance.name,
            "fit_images": len(fit_images),
            "score_images": len(score_images),
            "repairs": list(repairs),
            "seed": seed,
        }

    def entry(self, candidate: Candidate) -> ImportanceEntry:
        """Returns minus the distance after the best repair, and that repair's name.

        Raises:
            UnsupportedModelError: If the candidate cannot be built.
        """
        distances = dict(self._distances(candidate))
        finite = {name: d for name, d in distances.items() if math.isfinite(d)}
        if not finite:
            return ImportanceEntry(WORST, "calibrate")
        best = min(finite, key=lambda name: finite[name])
        return ImportanceEntry(-finite[best], "calibrate", best)

    def _distances(self, candidate: Candidate) -> Iterator[tuple[str, float]]:
        """Yields every repair that applies, with the distance after it."""
        ports = block_ports(self._traced, candidate)
        block = build_block(self._traced, candidate)
        methods = [m for m in self._repairs if m in APPLICABLE[candidate.kind]]
        if block.last is None:
            methods = [m for m in methods if not m.startswith("ls-")]
        for method in self._repaired(candidate, block, ports, methods):
            yield method, self._distance.of(self._outputs(candidate, block, ports))

    def _repaired(
        self, candidate: Candidate, block: RelaxedBlock, ports: Ports, methods: list[str]
    ) -> Iterator[str]:
        """Yields each method once the block is repaired by it."""
        if set(methods) <= {"none"}:
            return iter(methods)
        pairs = self._fit.whole([ports.source, ports.target], self._limit_bytes)
        seed = candidate_seed(candidate, self._seed)
        return repair_in_turn(block, pairs[ports.source], pairs[ports.target], methods, seed)

    @torch.no_grad()
    def _outputs(self, candidate: Candidate, block: nn.Module, ports: Ports) -> Iterator[Any]:
        """Yields the network's outputs with the block in place, batch by batch.

        A residual that began before the block adds its shortcut, which does not change:
        out = σ(z + (total − target)), with total and target those of the original.
        """
        rest = self._rests[ports.out]
        block_ends = candidate.block.start, candidate.block.end
        shortcut = self._traced.graph.open_residual(*block_ends) is not None
        names = {ports.source} | rest.needed | ({ports.total, ports.target} if shortcut else set())
        activation = activation_module(candidate.activation) if candidate.activation else None
        for values in self._score.batches(sorted(names)):
            z = block(values[ports.source])
            if shortcut:
                z = z + (values[ports.total] - values[ports.target])
            values[ports.out] = activation(z) if activation else z
            yield finish(self._traced.module, rest, values)


def _block_ends(traced: TracedNetwork) -> frozenset[str]:
    """Returns the names of all values that a block may read, or whose place it may take."""
    nodes = {node.name: node for node in traced.module.graph.nodes}
    units = [unit.nodes for unit in traced.graph.units]
    sources = {nodes[unit.conv].all_input_nodes[0].name for unit in units}
    return frozenset(sources | {unit.branch for unit in units} | {unit.sum for unit in units})
