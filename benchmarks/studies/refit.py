"""Scores of candidates after which more than the block is fitted: what follows, the classifier.

A block that is left out cannot be repaired, but what reads it can. Fine-tuning does so within
steps; a score that does not holds it against every removal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from trt_layermerge.core.candidate import Candidate, finish
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import ImportanceEntry
from trt_layermerge.core.unit import Block
from trt_layermerge.importance.distance import Distance
from trt_layermerge.importance.table import Scorer
from trt_layermerge.merge import RelaxedNet, relax, repair

BATCH = 128

RIDGE = 1e-2
"""Of the mean squared feature, towards the classifier's own weights."""


class RefitScorer:
    """Scores a candidate with units behind it fitted anew, each behind the fitted ones before it.

    Args:
        scorer: Chooses the block's own repair.
        model: The trained network.
        graph: What was traced of it.
        fit_images: Network inputs ``(N, C, H, W)`` to fit on.
        score_images: Network inputs to score on.
        units: How many units behind the block are fitted, by least squares, to the original's
            values at their ends.
        head: Whether the last linear layer is fitted to the original's answers after that.
    """

    def __init__(
        self,
        scorer: Scorer,
        model: nn.Module,
        graph: LayerGraph,
        fit_images: Tensor,
        score_images: Tensor,
        units: int,
        head: bool,
    ) -> None:
        self._scorer, self._model, self._graph = scorer, model, graph
        self._fit = torch.split(fit_images, BATCH)
        self._score = torch.split(score_images, BATCH)
        self._units, self._head = units, head
        with torch.no_grad():
            self._distance = Distance.to([model(part) for part in self._score])

    def entry(self, candidate: Candidate, first: bool = False) -> ImportanceEntry:
        """Returns minus the distance after all fits; the repair is that of the block."""
        own = self._scorer.entry(candidate, first)
        end = min(len(self._graph.units), candidate.block.end + self._units)
        behind = [same_again(self._graph, i) for i in range(candidate.block.end, end)]
        network = relax(self._model, self._graph, MergePlan.of(self._graph, [candidate, *behind]))
        repair(network.eval(), self._model, self._fit, _methods(candidate, own))
        if self._head:
            fit_head(network, self._model, self._fit)
        with torch.no_grad():
            distance = self._distance.of(network(part) for part in self._score)
        return replace(own, delta=-distance)


def _methods(candidate: Candidate, entry: ImportanceEntry) -> dict[Any, str]:
    return {candidate.key: entry.repair} if entry.repair else {}


def same_again(graph: LayerGraph, index: int) -> Candidate:
    """Returns the candidate that replaces a unit by a fitted convolution of its own shape."""
    spec = graph.conv_unit(index).spec.bare()
    return finish(graph, Block(index, index + 1), "fit", (), (spec,))


@torch.no_grad()
def fit_head(network: RelaxedNet, model: nn.Module, images: Sequence[Tensor]) -> None:
    """Fits the last linear layer to the original's answers, in place; without one, nothing.

    Ridge regression of what the answers lack on the features, so the pull is towards the layer's
    own weights: W += (Rᵀ X)(Xᵀ X + λ I)⁻¹, X with a column of ones.
    """
    linear = next((m for m in reversed(list(network.modules())) if isinstance(m, nn.Linear)), None)
    if linear is None:
        return
    features: list[Tensor] = []
    handle = linear.register_forward_hook(lambda _, inputs, __: features.append(inputs[0]))
    answers = torch.cat([network(part) for part in images]).double()
    handle.remove()
    wanted = torch.cat([model(part) for part in images]).double()
    x = torch.cat(features).double()
    x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    moments = x.T @ x
    moments += RIDGE * moments.diagonal().mean() * torch.eye(len(moments), dtype=moments.dtype)
    change = torch.linalg.solve(moments, x.T @ (wanted - answers)).T
    linear.weight.add_(change[:, :-1].to(linear.weight))
    if linear.bias is not None:
        linear.bias.add_(change[:, -1].to(linear.bias))
