"""``calibrate``: how far one replaced block moves the network's answers, without any training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from trt_layermerge.blocks import RelaxedBlock
from trt_layermerge.core.candidate import Candidate, open_residual
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.inputs import mapped, parts_of
from trt_layermerge.core.outputs import Kind
from trt_layermerge.core.tables import ImportanceEntry
from trt_layermerge.errors import UsageError
from trt_layermerge.finetune.device import device_named, exact, layout_of
from trt_layermerge.importance.amounts import SAMPLED_POSITIONS, Amounts
from trt_layermerge.importance.distance import Distance
from trt_layermerge.importance.folded import folded, folded_block
from trt_layermerge.importance.table import candidate_seed
from trt_layermerge.importance.values import MOST_IMAGES, RecordedValues
from trt_layermerge.kinds import kind_of
from trt_layermerge.merge.relax import build_block, retrace
from trt_layermerge.merge.repair import EQUATIONS_PER_UNKNOWN, Pairs, repair_in_turn
from trt_layermerge.merge.segments import record, rest_of, segment
from trt_layermerge.merge.surgery import Ports, block_ends, block_ports, inputs_of
from trt_layermerge.tracing.activations import activation_module

FIRST_REPAIR = "ls-variance"
"""What a first look repairs with: best, or within 1 % of the best, for most candidates."""

WORST = -1000.0
"""Score of a candidate whose answers are not finite: never worth choosing."""


class CalibrateScorer:
    """Scores a candidate by the distance of the network's answers from the original ones.

    The block is repaired in every way that applies, on ``fit_images``. The best by distance on
    the first few of ``score_images`` is scored on all of them, and its name is kept.
    Choosing the best of a few on images that score it makes the score slightly optimistic (a
    selection effect), alike for all of a kind. Values of the original are recorded once, as far
    as memory allows; a candidate then costs its repairs and one run of what follows its block.

    Args:
        model: The trained network; left untouched.
        graph: What was traced of it.
        fit_images: Network inputs to repair on, ``(N, C, H, W)`` or several (``core.inputs``).
        score_images: Network inputs to score on, disjoint from ``fit_images``.
        amounts: How many images serve for what; by default all, at once.
        repairs: Names of the repairs to try; None for all that a kind names.
        batch: Images a batch, or None for as many as a processor's cache holds of the largest
            value. Where all values are smaller, more are computed at a time.
        limit_bytes: Memory for recorded values, of images to fit on and to score on. Above, values
            are recomputed when another block is scored, and a repair uses as many of the first
            images as fit.
        seed: Combined with the candidate for whatever a repair draws.
        kinds: What each output is (``core.outputs``); by default what their shapes tell.
        device: Name of the torch device that computes: forward passes in float32, fits in float64.

    Attributes:
        notes: What the scores depend on besides model and data; ``distance`` says whether they
            are KL divergences in nats or, where the outputs are no logits, relative errors.

    Raises:
        UsageError: If the graph is not the model's, or the images are fewer inputs than it takes.
        DeviceError: If this machine has no such device.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: LayerGraph,
        fit_images: Any,
        score_images: Any,
        *,
        amounts: Amounts | None = None,
        repairs: Sequence[str] | None = None,
        batch: int | None = None,
        limit_bytes: int = 1 << 30,
        seed: int = 0,
        kinds: Sequence[Kind] | None = None,
        device: str = "cpu",
    ) -> None:
        self._traced, self._device = retrace(model, graph), device_named(device)
        layout = layout_of(self._device)
        network = folded(self._traced.module).to(self._device).to(memory_format=layout)
        if self._device.type != "cpu":
            batch = batch or MOST_IMAGES  # no cache to keep to, and much to do at once
        names = inputs_of(network)
        if len(names) != len(parts_of(fit_images)) or len(names) != len(parts_of(score_images)):
            raise UsageError(
                f"the network takes {len(names)} inputs ({', '.join(names)}), and candidates are "
                "scored on images of another number; give all of them (core.inputs.Several)"
            )
        self._repairs = None if repairs is None else tuple(repairs)
        self._seed, self._limit_bytes = seed, limit_bytes
        self._rest = lru_cache(partial(rest_of, network))
        self._segment = lru_cache(partial(segment, network))
        self._pairs = lru_cache(1)(self._pairs_of)
        ends = block_ends(self._traced)
        context = {name for unit in graph.units for name in self._rest(unit.nodes.out).needed}
        fit_images, score_images = (
            mapped(self._placed, images) for images in (fit_images, score_images)
        )
        self._amounts = amounts or Amounts(len(score_images))
        self._counts = self._amounts.to_fit(len(fit_images))
        self._fits = [
            RecordedValues(
                network, fit_images[:count], ends, batch, limit_bytes // len(self._counts)
            )
            for count in self._counts
        ]
        self._score = RecordedValues(network, score_images, ends | context, batch, limit_bytes)
        with exact(self._device):
            answers = [record(network, part, ["output"])["output"] for part in self._score.parts]
        self._distance = Distance.to(answers, kinds, tuple(parts_of(score_images)[0].shape))
        self.notes: dict[str, Any] = {
            "method": "calibrate",
            "distance": self._distance.name,
            "fit_images": len(fit_images),
            "score_images": len(score_images),
            "repairs": "all" if repairs is None else list(repairs),
            "seed": seed,
        }

    def entry(self, candidate: Candidate, first: bool = False) -> ImportanceEntry:
        """Returns minus the distance after the best repair, and that repair's name.

        Args:
            candidate: What is scored.
            first: Whether a first look is enough: few images, one repair (``Amounts.first``).

        Raises:
            UnsupportedModelError: If the candidate cannot be built.
        """
        with exact(self._device):
            return self._entry(candidate, first)

    def _entry(self, candidate: Candidate, first: bool) -> ImportanceEntry:
        ports = block_ports(self._traced, candidate)
        block = build_block(self._traced, candidate).to(self._device)
        methods = self._methods(candidate, block)
        if first:
            methods = [m for m in (FIRST_REPAIR, *block.fits[:1]) if m in methods][:1] or methods
        looked = self._amounts.first if first else None
        screened = self._parts(looked or self._amounts.screen)
        best: tuple[float, str, dict[str, Tensor]] | None = None
        for method in self._repaired(candidate, block, ports, methods):
            distance = self._distance_of(candidate, block, ports, screened)
            if math.isfinite(distance) and (best is None or distance < best[0]):
                state = {name: value.clone() for name, value in block.state_dict().items()}
                best = distance, method, state
        if best is None:
            return ImportanceEntry(WORST, "calibrate", images=looked)
        distance, method, state = best
        if looked is None and screened < len(self._score.parts):
            block.load_state_dict(state)
            distance = self._distance_of(candidate, block, ports, len(self._score.parts))
        if not math.isfinite(distance):
            return ImportanceEntry(WORST, "calibrate", images=looked)
        return ImportanceEntry(-distance, "calibrate", method, looked)

    def _parts(self, images: int) -> int:
        """Returns how many batches have as many images, or all of them."""
        return min(len(self._score.parts), math.ceil(images / len(self._score.parts[0])))

    def _methods(self, candidate: Candidate, block: RelaxedBlock) -> list[str]:
        """Returns the repairs that apply to a block."""
        tried = kind_of(candidate).repairs(block)
        return [method for method in tried if self._repairs is None or method in self._repairs]

    def _repaired(
        self, candidate: Candidate, block: RelaxedBlock, ports: Ports, methods: Sequence[str]
    ) -> Iterator[str]:
        """Yields every repair once the block is repaired by it."""
        if set(methods) <= {"none"}:  # its target may be a value that no repair aims at
            return iter(methods)
        enough = 0
        if block.unknowns and candidate.convs:
            area = math.prod(candidate.convs[-1].out_size)
            enough = place_of_enough(self._counts, area, block.unknowns)
        pairs = self._pairs(ports, enough)
        return repair_in_turn(block, pairs, methods, candidate_seed(candidate, self._seed))

    def _pairs_of(self, ports: Ports, place: int) -> Pairs:
        """Returns what repairs fit a block on, by the numbers of images that there are."""
        names, fit = (ports.source, ports.target), self._fits[place]
        used = fit.batches_within(names, self._limit_bytes)
        together = fit.batches_at_a_time(names, self._computed(ports, names))

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for values in fit.joined_batches(names, together, used):
                yield values[names[0]], values[names[1]]

        return Pairs(sum(map(len, fit.parts[:used])), batches)

    def _computed(self, ports: Ports, names: Iterable[str]) -> set[str]:
        """Returns the given names and those of all values from where a block starts."""
        return {*names, *self._rest(ports.source).names}

    def _distance_of(
        self, candidate: Candidate, block: RelaxedBlock, ports: Ports, parts: int
    ) -> float:
        """Returns the distance on the first batches."""
        outputs = self._outputs(candidate, folded_block(block), ports, parts)
        return self._distance.first(parts).of(outputs)

    @torch.no_grad()
    def _outputs(
        self, candidate: Candidate, block: nn.Module, ports: Ports, parts: int
    ) -> Iterator[Any]:
        """Yields the network's outputs with the block in place, on each of the first batches.

        A residual that stays around the block adds its shortcut, which does not change:
        out = σ(z + (total − target)), with total and target those of the original.
        """
        needed = self._rest(ports.out).needed
        finish = self._segment(needed | {ports.out}, ("output",))
        shortcut = open_residual(self._traced.graph, candidate) is not None
        names = {*ports.reads} | needed | ({ports.total, ports.target} if shortcut else set())
        activation = activation_module(candidate.activation) if candidate.activation else None
        together = self._score.batches_at_a_time(names | {"output"}, self._computed(ports, names))
        for values in self._score.joined_batches(sorted(names), together, parts):
            z = block(*(values[name] for name in ports.reads))
            if shortcut:
                z = z + (values[ports.total] - values[ports.target])
            values[ports.out] = activation(z) if activation else z
            output = finish(values)["output"]
            yield from output.split(len(self._score.parts[0])) if together > 1 else [output]

    def _placed(self, part: Tensor) -> Tensor:
        """Returns an input where it is computed, in the layout that is fastest there."""
        layout = layout_of(self._device) if part.ndim == 4 else torch.contiguous_format
        return part.to(self._device).contiguous(memory_format=layout)


def place_of_enough(counts: Sequence[int], area: int, unknowns: int) -> int:
    """Returns the place of the fewest images with enough positions for a fit, or of the most.

    Args:
        counts: Numbers of images, rising.
        area: Positions of the fitted convolution's output.
        unknowns: Weights of one output channel.
    """
    positions, needed = min(area, SAMPLED_POSITIONS), EQUATIONS_PER_UNKNOWN * (unknowns + 1)
    found = (place for place, count in enumerate(counts) if count * positions >= needed)
    return next(found, len(counts) - 1)
