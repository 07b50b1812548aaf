"""Candidates worth their latency → importance, in this process or by several workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from torch import nn

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.jsonio import Json, read_lines, sha256_json
from trt_layermerge.core.outputs import Kind
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.streams import plan_at
from trt_layermerge.core.tables import ImportanceEntry, LatencyTable
from trt_layermerge.data import LabelledData, split
from trt_layermerge.data.loader import Images
from trt_layermerge.finetune.recipe import FinetuneRecipe, preset
from trt_layermerge.importance.amounts import Amounts, amounts_for
from trt_layermerge.importance.calibrate import CalibrateScorer
from trt_layermerge.importance.finetune import FinetuneScorer
from trt_layermerge.importance.parallel import Workers, score_in_parallel
from trt_layermerge.importance.spectral import SpectralScorer
from trt_layermerge.importance.table import Scorer, Scores
from trt_layermerge.search.sampling import useful
from trt_layermerge.session.images import calibration_of, images_of, in_memory
from trt_layermerge.session.settings import ImportanceSection, ScaleSection, Settings
from trt_layermerge.session.starts import Starts

MakeScorer = Callable[[], Scorer]


def to_score(
    graph: LayerGraph, candidates: Sequence[Candidate], table: LatencyTable, settings: Settings
) -> list[Candidate]:
    """Returns the candidates worth their latency; under the paper's protocol untouched units too.

    There every entry is trained anew, and a unit that is not would count as free.

    Args:
        graph: The traced network.
        candidates: What to choose from.
        table: Latencies of all of them and of every untouched unit.
        settings: Precision, batch and method.
    """
    measure = settings.measure
    whole = [c for c in candidates if not c.widths]  # what is known of them serves all widths
    faster = useful(graph, whole, table, measure.precision, measure.batch)
    if settings.importance.method != "finetune":
        return faster
    return [*faster, *(c for c in candidates if c.original and c.convs)]


def scoring_recipe(section: ImportanceSection, seed: int) -> FinetuneRecipe:
    """Returns how to train for one entry under the paper's protocol."""
    changes = {"seed": seed, **section.finetune}
    return FinetuneRecipe.from_json({**preset("importance").to_json(), **changes})


def scorer_of(
    model: nn.Module,
    graph: LayerGraph,
    train: Images,
    settings: Settings,
    kinds: tuple[Kind, ...] | None = None,
    amounts: Amounts | None = None,
) -> MakeScorer:
    """Returns what makes the scorer of the wanted method; all that it needs is loaded.

    Args:
        model: The original network, in eval mode.
        graph: What was traced of it.
        train: The training images.
        settings: Method, numbers of images, device and seed.
        kinds: What each output is (``core.outputs``); None for what their shapes tell.
        amounts: How many images candidates are scored on; all, at once, if None.
    """
    section, seed = settings.importance, settings.seed
    if section.method == "spectral":
        return partial(SpectralScorer, model, graph)
    if section.method == "finetune":
        data: LabelledData = in_memory(train, 1 << 20)
        held_out, rest = split(data, section.score_images, seed)
        recipe = scoring_recipe(section, seed)
        return partial(
            FinetuneScorer,
            model,
            graph,
            rest,
            held_out,
            recipe,
            device=settings.device,
            kinds=kinds,
        )
    fit, score = calibration_of(train, section.fit_images, section.score_images, seed)
    return partial(
        CalibrateScorer,
        model,
        graph,
        images_of(fit),
        images_of(score, amounts.score if amounts else None),
        amounts=amounts,
        seed=settings.seed,
        kinds=kinds,
        device=settings.device,
    )


@dataclass(frozen=True)
class Scoring:
    """Scores candidates in this process or in several workers.

    Attributes:
        make: Loads what the scorer needs (``scorer_of``); not called where there is nothing to do.
        scale: Which processes score.
        gpus: GPUs of each worker.
    """

    make: Callable[[], MakeScorer]
    scale: ScaleSection
    gpus: int

    def scores(self, candidates: Sequence[Candidate], first: bool = False) -> Scores:
        """Yields every candidate with its score, or with what a first look says."""
        if not candidates:
            return
        if self.scale.workers > 1 or self.scale.ray is not None:
            workers = Workers(
                self.scale.workers, self.scale.ray, self.scale.threads, gpus=self.gpus
            )
            yield from score_in_parallel(candidates, self._loaded, workers, first)
        else:
            yield from (
                (candidate, self._scorer.entry(candidate, first)) for candidate in candidates
            )

    @cached_property
    def _loaded(self) -> MakeScorer:
        return self.make()

    @cached_property
    def _scorer(self) -> Scorer:
        return self.make()()


def stream_scores(
    starts: Starts, widths: Mapping[str, Sequence[int]], joint: Callable[[MergePlan], float]
) -> Callable[[Sequence[Candidate]], Scores]:
    """Returns what scores narrower streams alone: chosen by data, and all that they touch repaired.

    Args:
        starts: Repairs whole networks.
        widths: All widths of each stream, falling: the channels of one are among those of another.
        joint: Minus the loss of a plan's network.
    """

    def scores(missing: Sequence[Candidate]) -> Scores:
        if not missing:
            return
        found = starts.choose_channels(widths)
        for candidate in missing:
            ((name, width),) = candidate.widths
            channels = found[name][width]
            units = plan_at(starts.graph, {name: width})
            delta = joint(MergePlan(units, channels={name: channels}))
            yield candidate, ImportanceEntry(delta, "calibrate", channels=channels)

    return scores


def amounts_of(macs: float, entries: int, settings: Settings) -> Amounts:
    """Returns how many images score each of some candidates; all, where each is trained for.

    Args:
        macs: Multiply-accumulates of the original for one image.
        entries: How many candidates.
        settings: How much work it may be.
    """
    section = settings.importance
    if section.method != "calibrate":
        return Amounts(section.score_images)
    return amounts_for(entries, macs, section.score_images, section.effort)


def set_aside(path: Path, notes: Json) -> None:
    """Renames a table that other settings made; it may have taken days."""
    if not path.exists():
        return
    header, _ = read_lines(path, "importance")
    if header.get("notes") != notes:
        path.rename(path.with_suffix(f".{sha256_json(header)[:8]}.jsonl"))
