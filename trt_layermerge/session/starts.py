"""The network of a plan as training finds it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from trt_layermerge.core.callbacks import Callbacks
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.inputs import chunks, mapped
from trt_layermerge.core.jsonio import Json
from trt_layermerge.core.outputs import Kind
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.streams import with_channels, with_counterparts
from trt_layermerge.core.tables import ImportanceTable
from trt_layermerge.data import LabelledData, draw, split
from trt_layermerge.errors import DivergedError, UsageError
from trt_layermerge.finetune.device import lent
from trt_layermerge.importance.values import RecordedValues
from trt_layermerge.merge import (
    Reconstruction,
    RelaxedNet,
    collapse_early,
    match_error,
    reconstruct,
    relax,
    repair,
)
from trt_layermerge.merge.relax import retrace
from trt_layermerge.merge.repair import Targets
from trt_layermerge.merge.slim import choose_channels
from trt_layermerge.merge.surgery import block_ends
from trt_layermerge.session.images import images_of
from trt_layermerge.session.settings import Settings
from trt_layermerge.tracing import TracedNetwork

BATCH, FEWEST = 128, 16
"""Images that are computed at a time: the most, and those where values are large."""

BATCH_BYTES = 64 << 20
"""Of the largest value of a batch: what follows from it takes several times as much."""

KEPT_BYTES = 1 << 30
"""Of the original's values, while plans are compared."""

HELD_OUT = 256
"""Images at most on which a reconstruction must be better than its start."""


@dataclass(frozen=True)
class Starts:
    """Makes the networks of plans as their training finds them.

    Attributes:
        model: The original network, in eval mode; left untouched.
        graph: What was traced of it.
        importance: Which repair was best for each candidate.
        fit: Images to fit repairs on; None where nothing is repaired.
        train: Images to reconstruct on.
        settings: How to start.
        tell: What is called meanwhile.
        kinds: What each output is (``core.outputs``); None for what their shapes tell.
    """

    model: torch.nn.Module
    graph: LayerGraph
    importance: ImportanceTable
    fit: LabelledData | None
    train: LabelledData | None
    settings: Settings
    tell: Callbacks
    kinds: tuple[Kind, ...] | None = None
    _recorded: list[RecordedValues] = field(default_factory=list, init=False, repr=False)

    def bare(self, plan: MergePlan) -> RelaxedNet:
        """Returns a plan's network with the original weights, all blocks unmerged."""
        plan = with_channels(plan, self.importance)
        return relax(self._traced, self.graph, plan).eval()

    def unfilled(self, plan: MergePlan) -> RelaxedNet:
        """Returns a plan's network as it is trained, for weights to be filled in."""
        network = self.bare(plan)
        if self.settings.finetune.collapsed:
            collapse_early(network, None)
        return network

    def repaired(self, plan: MergePlan) -> RelaxedNet:
        """Returns a plan's network, each block fitted behind the fitted ones before it."""
        network = self.bare(plan)
        self.repair(network)
        return network

    def repair(self, network: RelaxedNet) -> None:
        """Fits the blocks in place; each takes the repair that scored best for it alone."""
        changed = network.plan.changed
        known = with_counterparts(self.graph, self.importance, changed)
        found = {c.key: known[c].repair for c in changed if c in known}
        methods = {key: name for key, name in found.items() if name is not None}
        with lent(self.settings.device, network) as device:
            images = mapped(lambda part: part.to(device), images_of(self._images))
            targets = self._targets(images, device)
            repair(network, self._traced, chunks(images, self.batch), methods, targets)

    def choose_channels(
        self, widths: Mapping[str, Sequence[int]]
    ) -> dict[str, dict[int, tuple[int, ...]]]:
        """Returns which channels remain at every width of every stream, by the images to fit on."""
        with lent(self.settings.device, self._traced.module) as device:
            images = mapped(lambda part: part.to(device), images_of(self._images))
            return choose_channels(self._traced, widths, [*chunks(images, self.batch)])

    @cached_property
    def batch(self) -> int:
        """Images that are computed at a time."""
        nodes = self._traced.module.graph.nodes
        shapes = [node.meta["shape"] for node in nodes if "shape" in node.meta]
        largest = 4 * max(int(math.prod(shape[1:])) for shape in shapes)
        return max(FEWEST, min(BATCH, BATCH_BYTES // largest))

    @cached_property
    def _traced(self) -> TracedNetwork:
        """The original, traced once for all plans."""
        return retrace(self.model, self.graph)

    def _targets(self, images: Any, device: torch.device) -> Targets:
        """Returns what gives the original's values on a device, recorded once for all plans."""
        if not self._recorded:
            traced = retrace(self._traced, self.graph)
            module, ends = traced.module.to(device), block_ends(traced)
            values = RecordedValues(module, images, ends, self.batch, KEPT_BYTES)
            self._recorded.append(values)
        (recorded,) = self._recorded
        return lambda name: (values[name] for values in recorded.batches([name]))

    def start(self, plan: MergePlan) -> tuple[RelaxedNet, Json | None]:
        """Returns a plan's network before the training, and what reconstruction came to."""
        network = self.bare(plan)
        return network, self.prepare(network)

    def prepare(self, network: RelaxedNet) -> Json | None:
        """Repairs, reconstructs and merges in place what the settings say; tells of the second."""
        section = self.settings.finetune
        if section.start == "repair":
            self.repair(network)
        told = self._reconstructed(network) if section.reconstruct.steps else None
        if section.collapsed:
            collapse_early(network, chunks(images_of(self._images), BATCH))
        return told

    @property
    def _images(self) -> LabelledData:
        if self.fit is None:
            raise UsageError("a network is repaired on images, and none were given")
        return self.fit

    def _reconstructed(self, network: RelaxedNet) -> Json:
        """Returns errors before and after a reconstruction in place; undone if it did not help.

        Errors are the mean over output and changed blocks' ends, on training images held out.
        """
        section, seed = self.settings.finetune.reconstruct, self.settings.seed
        drawn = draw(self.train or self._images, section.images, seed)
        held, used = (
            images_of(part) for part in split(drawn, min(HELD_OUT, len(drawn) // 4 or 1), seed)
        )
        how = Reconstruction(section.steps, section.lr, section.batch, section.scope, seed)

        def tell(done: int, total: int) -> None:
            self.tell.progress("reconstructing", done, total)

        with lent(self.settings.device, network, self.model):
            start = copy.deepcopy(network.state_dict())
            before = match_error(network, self.model, held)
            try:
                reconstruct(network, self.model, used, how, tell)
                after = match_error(network, self.model, held)
            except DivergedError:
                after = math.inf
            if not after < before:
                network.load_state_dict(start)
        if not after < before:
            self.tell.note(
                f"reconstruction was undone: on held-out images its error went from {before:.3f} "
                f"to {after:.3f}; lower finetune.reconstruct.lr"
            )
        return {
            "images": len(used),
            "error_before": before,
            "error_after": after if math.isfinite(after) else None,
            "kept": after < before,
        }
