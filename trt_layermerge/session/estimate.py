"""About how long the tables and a search will take here, by counting what will be computed.

The machine's speed is that of one short forward pass; what a multiply-accumulate of each kind takes
in its terms is measured (``docs/results/search-time.md`` sets estimates beside real times). Within
a factor of two mostly, for networks of convolutions at usual sizes on a machine that does nothing
else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor, nn

from trt_layermerge.core.candidate import Candidate, original_candidate
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.inputs import mapped, parts_of
from trt_layermerge.core.jsonio import Json
from trt_layermerge.core.unit import ConvUnit
from trt_layermerge.finetune.recipe import FinetuneRecipe
from trt_layermerge.importance.amounts import REFINED, Amounts, images_an_entry
from trt_layermerge.importance.calibrate import place_of_enough
from trt_layermerge.kinds import kind_of
from trt_layermerge.measure.bench import BURST_MS
from trt_layermerge.measure.table import LIMIT_MS, PASSES
from trt_layermerge.merge.repair import EQUATIONS_PER_UNKNOWN, POSITIONS
from trt_layermerge.search.sampling import promising
from trt_layermerge.session.effort import A_STEP, affordable, race_steps
from trt_layermerge.session.scoring import amounts_of
from trt_layermerge.session.settings import Settings
from trt_layermerge.session.training import MOST_RUNGS, races, training_recipe

HALF = 0.6
"""Share of a matrix of second moments that is computed, strip by strip: the rest mirrors it."""

PROBE = 2e9
"""Multiply-accumulates of the forward pass that tells how fast this machine is."""

DEPLOYED = 0.45
"""What a backend takes of the time of torch for a whole network: normalisations are folded."""

SCORED = 0.7
"""The same for what is scored: folded too, in the layout that is fastest."""

ALONE = 0.8
"""What a convolution of the table takes of the time of a product of matrices in float64."""

DENSE = 512
"""Rows and columns of the float64 matrices that tell how fast least squares are."""

LONG_S = 0.5
"""Seconds of measuring after which nothing is repeated."""

STARTED_S = 0.06
"""Seconds that building and starting one convolution for a measurement takes."""

A_UNIT_S, A_WEIGHT_S = 0.02, 5e-8
"""Seconds that building and exporting a whole network takes for each unit and each weight."""

BUILT = 3
"""Networks that a search builds and measures, for each finalist."""


@dataclass(frozen=True)
class Speed:
    """How fast torch is here.

    Attributes:
        s_a_mac: Seconds of one multiply-accumulate of the network, on all threads together.
        dense_s: The same of matrices in float64.
        threads: How many threads these are.
    """

    s_a_mac: float
    dense_s: float
    threads: int

    @staticmethod
    def of(model: nn.Module, example: Any, macs: float) -> Speed:
        """Returns the speed of some forward passes, in less than a second for usual networks.

        Args:
            model: The network, in eval mode.
            example: An input, or several (``core.inputs``).
            macs: Its multiply-accumulates for one image.
        """
        images = max(1, min(64, round(PROBE / macs)))

        def repeated(part: Tensor) -> Tensor:
            return part[:1].expand(images, *part.shape[1:]).contiguous()

        inputs = parts_of(mapped(repeated, example))
        matrix = torch.ones(DENSE, DENSE, dtype=torch.float64)
        with torch.no_grad():
            network_s = _seconds(lambda: model(*inputs))
        dense_s = _seconds(lambda: matrix @ matrix)
        return Speed(network_s / (images * macs), dense_s / DENSE**3, torch.get_num_threads())


def _seconds(work: Callable[[], object]) -> float:
    """Returns what some work takes once it is warm, were nothing else to run here.

    Where other programs do, the threads' own time tells more than the clock on the wall.
    """
    took: list[float] = []
    while len(took) < 2 or (len(took) < 4 and sum(took) < LONG_S):
        wall, spent = perf_counter(), process_time()
        work()
        shared = (process_time() - spent) / torch.get_num_threads()
        took.append(min(perf_counter() - wall, shared))
    return min(took)


@dataclass(frozen=True)
class Estimate:
    """Seconds of each stage; None for one that nothing here tells of."""

    latency: float | None
    importance: float | None
    search: float | None
    finetune: float | None = None

    @property
    def total(self) -> float:
        """Seconds of what is known."""
        return sum(seconds or 0.0 for seconds in asdict(self).values())


def estimate(
    graph: LayerGraph,
    candidates: Sequence[Candidate],
    macs: float,
    speed: Speed,
    settings: Settings,
    images: int | None = None,
) -> Estimate:
    """Returns about how long each stage takes.

    Latencies of another device, candidates that are trained for each, and a training on another
    device than the CPU are not estimated.

    Args:
        graph: The traced network.
        candidates: What may replace its blocks.
        macs: Multiply-accumulates of the network for one image.
        speed: How fast this machine is.
        settings: How much is done.
        images: How many to train on; None if nobody knows.
    """
    measure, search = settings.measure, settings.search
    training = training_recipe(settings.finetune, settings.seed, True)
    known = images is not None and settings.device == "cpu"
    finetune = _training_s(training, images or 0, speed.s_a_mac * macs) if known else None
    here = measure.host is None and not measure.recorded and not measure.engines
    whole_s = A_UNIT_S * len(graph.units) + A_WEIGHT_S * _weights(graph)
    if here:
        alone = speed.threads * measure.batch  # one thread measures
        run_ms = 1e3 * DEPLOYED * alone * speed.s_a_mac * macs
        whole_s += measure.rounds * max(BURST_MS, run_ms) / 1e3
        specs = {spec for c in _offered(graph, candidates) for spec in c.costs}
        runs_s = [
            min(LIMIT_MS / 1e3, measure.rounds * PASSES * ALONE * alone * speed.dense_s * spec.macs)
            for spec in specs
            if isinstance(spec, ConvSpec)
        ]
        table_s = STARTED_S * len(specs) + sum(runs_s)
    if settings.importance.method != "calibrate":
        table = table_s + measure.networks * whole_s if here else None
        return Estimate(table, None, None, finetune)
    scored = promising(graph, [c for c in candidates if not c.widths])
    amounts = amounts_of(macs, len(scored), settings)
    scoring = SCORED * len(scored) * images_an_entry(amounts) * macs
    fitting = sum(_fit(c, amounts, settings) for c in scored)
    return Estimate(
        table_s + (measure.networks + 1) * whole_s if here else None,
        speed.s_a_mac * scoring + speed.dense_s * fitting,
        speed.s_a_mac * _whole_networks(macs, settings)
        + (BUILT * search.finalists * whole_s if here else 0.0),
        finetune,
    )


def _training_s(recipe: FinetuneRecipe | None, images: int, image_s: float) -> float:
    """Returns the seconds of a training; ``image_s`` are those of one image's forward pass."""
    return 0.0 if recipe is None else recipe.epochs * images * A_STEP * image_s


def _offered(graph: LayerGraph, candidates: Sequence[Candidate]) -> list[Candidate]:
    return [*candidates, *(original_candidate(graph, unit.index) for unit in graph.units)]


def _weights(graph: LayerGraph) -> int:
    convs = [unit.spec for unit in graph.units if isinstance(unit, ConvUnit)]
    return sum(math.prod(c.kernel) * c.in_channels * c.out_channels // c.groups for c in convs)


def _fit(candidate: Candidate, amounts: Amounts, settings: Settings) -> float:
    """Returns the multiply-accumulates of the least squares of one candidate, on average."""
    if not candidate.convs or kind_of(candidate).family == "removal":
        return 0.0
    conv = candidate.convs[-1]
    unknowns = math.prod(conv.kernel) * conv.in_channels // conv.groups
    counts, area = amounts.to_fit(settings.importance.fit_images), math.prod(conv.out_size)
    images = counts[place_of_enough(counts, area, unknowns)]
    samples = min(images * area, max(images * POSITIONS, EQUATIONS_PER_UNKNOWN * unknowns))
    once = conv.groups * unknowns**2 * (HALF * samples + unknowns)
    return once * (1.0 if amounts.first is None else 1 + REFINED)


def _whole_networks(macs: float, settings: Settings) -> float:
    """Returns the multiply-accumulates of repairing, scoring and racing whole networks."""
    search, how = settings.search, affordable(macs, settings)
    work = SCORED * (how.samples + search.finalists) * (2 * how.fit + how.score) * macs
    recipe = training_recipe(settings.finetune, settings.seed, True)
    if recipe is not None and races(settings, recipe):
        steps = race_steps(macs, recipe.batch, MOST_RUNGS, settings)
        work += steps * MOST_RUNGS * A_STEP * recipe.batch * macs
    return work


def told(
    graph: LayerGraph,
    candidates: Sequence[Candidate],
    macs: float,
    speed: Speed,
    settings: Settings,
) -> Json:
    """Returns the estimate as ``inspect`` tells it, and what quicker settings would take.

    Arguments are those of ``estimate``.
    """

    def seconds(**importance: str) -> Estimate:
        section = settings.importance.model_copy(update=importance)
        changed = settings.model_copy(update={"importance": section})
        return estimate(graph, candidates, macs, speed, changed)

    found = seconds()
    quick = seconds(effort="quick").total
    return {
        "seconds": {name: value and round(value, 1) for name, value in asdict(found).items()},
        "threads": speed.threads,
        "quick_s": round(quick, 1) if quick < 0.9 * found.total else None,
    }
