"""``finetune``: the protocol of LayerMerge (ICML 2024), one short training per candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.outputs import Kind
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import ImportanceEntry
from trt_layermerge.data import LabelledData
from trt_layermerge.errors import DivergedError
from trt_layermerge.finetune.evaluate import accuracy
from trt_layermerge.finetune.loop import finetune
from trt_layermerge.finetune.recipe import PRESETS, FinetuneRecipe
from trt_layermerge.importance.table import candidate_seed
from trt_layermerge.merge.relax import RelaxedNet, relax


class FinetuneScorer:
    """Scores a candidate by the accuracy after a short training with this one block replaced.

    Both hold-outs must come from the training images and be disjoint (``data.split``).
    An untouched unit is initialised anew before its training, since it would otherwise be scored
    as free; so is every newly fitted convolution.

    Args:
        model: The trained network; left untouched, on its device.
        graph: What was traced of it.
        train: Hold-out to train on.
        judge: Hold-out to take the accuracy on.
        recipe: How to train; the paper's by default. Its seed is combined with the candidate's.
        device: Name of a torch device.
        kinds: What each output is (``core.outputs``); None for what their shapes tell.

    Attributes:
        base: Accuracy of the untouched network on ``judge``, as a fraction.
        notes: What the scores depend on besides model and data.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: LayerGraph,
        train: LabelledData,
        judge: LabelledData,
        recipe: FinetuneRecipe = PRESETS["importance"],
        device: str = "cpu",
        kinds: Sequence[Kind] | None = None,
    ) -> None:
        self._model, self._graph, self._recipe = model, graph, recipe
        self._train, self._judge, self._device = train, judge, device
        self._kinds = kinds
        self.base = accuracy(model, judge, kinds=kinds)
        self.notes: dict[str, Any] = {
            "method": "finetune",
            "recipe": recipe.to_json(),
            "train_images": len(train),
            "judge_images": len(judge),
        }

    def entry(self, candidate: Candidate, first: bool = False) -> ImportanceEntry:
        """Returns the accuracy after training less that of the untouched network.

        A training that diverges counts as an accuracy of 0. There is no quicker first look.

        Raises:
            UnsupportedModelError: If the candidate cannot be built.
        """
        seed = candidate_seed(candidate, self._recipe.seed)
        relaxed = relax(self._model, self._graph, MergePlan.of(self._graph, [candidate]))
        if candidate.original:
            reinitialise(relaxed, candidate.block.start, seed)
        teacher = self._model if self._recipe.distill_weight > 0 else None
        recipe = replace(self._recipe, seed=seed)
        try:
            finetune(
                relaxed,
                self._train,
                None,
                recipe,
                teacher=teacher,
                device=self._device,
                kinds=self._kinds,
            )
        except DivergedError:
            return ImportanceEntry(-self.base, "finetune")
        return ImportanceEntry(
            accuracy(relaxed, self._judge, kinds=self._kinds) - self.base, "finetune"
        )


def reinitialise(relaxed: RelaxedNet, unit: int, seed: int) -> None:
    """Gives an untouched unit's convolution and normalisation torch's own start values.

    Args:
        relaxed: The network; changed in place.
        unit: Index of the unit in the graph.
        seed: Of the values; torch's generator on the CPU is left as it was.
    """
    found = relaxed.graph.conv_unit(unit)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        for name in (found.name, found.bn):
            module = relaxed.net.get_submodule(name) if name else nn.Identity()
            if isinstance(module, nn.Conv2d | nn.modules.batchnorm._BatchNorm):
                module.reset_parameters()
