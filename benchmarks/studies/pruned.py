"""Networks of Torch-Pruning, at about a wanted measured latency; an extra of the study alone.

Channels that count least go everywhere, those of the residual stream too (DepGraph, CVPR 2023).
What is left starts with the original's weights, as the library's own examples do.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from benchmarks.studies.arms import Criterion
from benchmarks.studies.settings import calibration
from trt_layermerge.core.jsonio import Json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.errors import UsageError
from trt_layermerge.measure.meter import Beside
from trt_layermerge.merge import RelaxedNet, collapse
from trt_layermerge.pipeline.run import Run
from trt_layermerge.session.networks import onnx_of

MULTIPLE = 8
"""Channels come in whole multiples, as the library's documentation recommends."""

RATIOS = tuple(step / 64 for step in range(1, 64))
"""Pruning ratios that are looked at. Rounded widths make steps of them, and beyond about a half a
group whose channels would all go keeps them all, so latency does not follow the ratio there: all
are measured, where a bisection would rest on an order that there is not."""


@dataclass(frozen=True)
class Pruning:
    """One network of the library: the same for the same original, images and values."""

    criterion: Criterion
    ratio: float

    def to_json(self) -> Json:
        """Returns its values, JSON-ready."""
        return asdict(self)


def pruned(run: Run, how: Pruning) -> RelaxedNet:
    """Returns the original with fewer channels, as one in which no block is replaced.

    Args:
        run: Has the original, and the images that Taylor's criterion takes gradients of.
        how: Criterion and ratio.

    Raises:
        UsageError: If the library is not installed.
    """
    library = _library()
    session, fit = run.session, calibration(run)[0]
    images, labels = fit.batch(torch.arange(len(fit)))
    model = copy.deepcopy(session.model).eval().requires_grad_(True)
    criterion = library.importance.GroupMagnitudeImportance(p=2)
    if how.criterion == "taylor":
        assert labels is not None  # training images of the study have labels
        functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        criterion = library.importance.GroupTaylorImportance()
    ranked = how.criterion != "uniform"
    pruner = library.pruner.BasePruner(
        model,
        images[:1],
        importance=criterion,
        global_pruning=ranked,
        isomorphic=ranked,
        pruning_ratio=how.ratio,
        ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear)][-1:],
        round_to=MULTIPLE,
    )
    pruner.step()
    model.zero_grad(set_to_none=True)
    return RelaxedNet(fx.symbolic_trace(model), session.graph, MergePlan.of(session.graph, []))


def pruned_onnx(run: Run, how: Pruning) -> bytes:
    """Returns such a network as plans are measured: normalisations folded."""
    networks = run.session.networks
    merged = collapse(pruned(run, how))
    return onnx_of(merged, networks.example, networks.precision, networks.fallback)


def pruned_near(
    run: Run, criterion: Criterion, budget_ms: float, rounds: int, tolerance: float
) -> tuple[Pruning, float]:
    """Returns the network that keeps most at about a measured latency, and its speed-up.

    Where none measures within the tolerance it is the one that measured nearest.

    Args:
        run: Has the original.
        criterion: What decides which channels go.
        budget_ms: The latency; the original's is the run's.
        rounds: Of the measurement, of all widths in turns with the original.
        tolerance: Largest relative difference that counts as equal.
    """
    session = run.session
    found = _distinct(run, criterion)
    models = [pruned_onnx(run, how) for how in found]
    outcomes = session.networks.meter.networks(session.networks.original_onnx, models, rounds)
    wanted = session.latencies.original_ms / budget_ms
    near = [
        (how, one.ratio, abs(wanted / one.ratio - 1))
        for how, one in zip(found, outcomes, strict=True)
        if isinstance(one, Beside)
    ]
    good = [one for one in near if one[2] <= tolerance]
    taken = good[0] if good else min(near, key=lambda one: one[2])
    return taken[0], taken[1]


def _distinct(run: Run, criterion: Criterion) -> list[Pruning]:
    """Returns the least ratio of every set of widths that can be reached, in order."""
    found: dict[Sequence[int], Pruning] = {}
    for ratio in RATIOS:
        how = Pruning(criterion, ratio)
        shapes = (p.shape[0] for p in pruned(run, how).parameters())
        found.setdefault(tuple(shapes), how)
    return list(found.values())


def _library() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise UsageError(
            "the arms of Torch-Pruning need the library: pip install torch-pruning==1.6.1, or name "
            "other arms (--only)"
        ) from error
    return torch_pruning
