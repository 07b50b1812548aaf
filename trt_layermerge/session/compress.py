"""One call for the whole way: a trained model and a budget → a smaller network, measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trt_layermerge.core.device import Precision
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.jsonio import Json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.data.loader import Images
from trt_layermerge.merge import Certificate
from trt_layermerge.session.session import Session
from trt_layermerge.session.training import Metric


@dataclass(frozen=True)
class Result:
    """What ``compress`` came to.

    Attributes:
        session: The session that did it, to go on with: ``quantize``, ``build``, another budget.
        bench: Percentiles in ms of both networks, and the speed-up with its spread.
        accuracy: Of the merged network on ``test_loader`` (or ``val_loader``), as a fraction, or
            the metric; None where there is no metric and no labels.
        original_accuracy: The same of the original network.
    """

    session: Session
    bench: Json
    accuracy: float | None
    original_accuracy: float | None

    @property
    def model(self) -> nn.Module:
        """The merged network: a plain ``nn.Module`` in eval mode."""
        return self.session.merged

    @property
    def plan(self) -> MergePlan:
        """What was replaced."""
        return self.session.plan

    @property
    def graph(self) -> LayerGraph:
        """What was traced of the original."""
        return self.session.graph

    @property
    def certificate(self) -> Certificate:
        """How far the merged network is from the trained one."""
        return self.session.certificate

    @property
    def speedup(self) -> float | None:
        """Measured speed-up over the original, paired by round; None if latencies were imported."""
        found: float | None = self.bench["speedup"]
        return found

    @property
    def latency_ms(self) -> float | None:
        """Median latency of the merged network, in ms; None like the speed-up."""
        return self._median_ms("merged")

    @property
    def original_ms(self) -> float | None:
        """Median latency of the original network, in ms; None like the speed-up."""
        return self._median_ms("original")

    def _median_ms(self, network: str) -> float | None:
        side = self.bench[network]
        return None if side is None else float(side["p50_ms"])

    @property
    def predicted_ms(self) -> float | None:
        """Latency that the plan was predicted to have, on the clock of the tables, in ms."""
        return self.plan.latency_ms

    def export(self, path: str | Path) -> Path:
        """Writes the merged network as ONNX, and returns where."""
        self.session.export(path)
        return Path(path)

    def save(self, folder: str | Path) -> Path:
        """Copies everything that was made to a folder, and returns it.

        Plan, weights (safetensors), ONNX models, certificate, figures.
        """
        target = Path(folder)
        if target.resolve() != self.session.folder.resolve():
            shutil.copytree(self.session.folder, target, dirs_exist_ok=True)
        return target


def compress(
    model: nn.Module,
    train_loader: Images,
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    speedup: float | None = None,
    budget_ms: float | None = None,
    val_loader: Images | None = None,
    test_loader: Images | None = None,
    metric: Metric | None = None,
    backend: str = "onnxruntime",
    precision: Precision = "fp32",
    finetune: str | Mapping[str, Any] = "short",
    rules: str = "full",
    settings: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> Result:
    """Makes a trained network faster, and returns the smaller one with what was measured of it.

    Example::

        result = tlm.compress(model, train_loader, torch.zeros(1, 3, 224, 224), speedup=1.5)
        print(result.speedup, result.accuracy)
        result.export("model.onnx")

    Args:
        model: The trained network; left untouched.
        train_loader: Any iterable of batches that can be passed over again: images
            ``(N, C, H, W)`` as the network takes them, or tuples of images and labels ``(N,)``; of
            several inputs as ``Session`` tells. Without labels the original network alone teaches.
        example_inputs: An input ``(N, C, H, W)``, or a tuple of all inputs, of the shape, batch
            included, that latency counts at.
        speedup: Latency of the original divided by the budget, above 1; 1.5 where neither this, nor
            ``budget_ms``, nor ``settings`` names one.
        budget_ms: Latency that the measured network must meet, in place of a speed-up.
        val_loader: Images to choose by, never trained on; without labels, answers are compared with
            the original's.
        test_loader: Images with labels for the final accuracy; by default those of ``val_loader``.
        metric: Maps a network to how good it is (higher is better), in place of accuracy.
        backend: What measures: ``onnxruntime`` (this CPU), ``torch``, ``tensorrt``,
            ``tensorrt_rtx``.
        precision: ``fp32`` or ``fp16``: what is measured; int8 comes afterwards
            (``result.session.quantize``).
        finetune: Name of a training preset (``short``, ``resnet34``, ...), ``none`` for no
            training, or values that replace those of ``short``, such as
            ``{"epochs": 30, "lr": 0.01}``.
        rules: ``full``, or ``paper`` for the published candidates alone.
        settings: What else decides the outcome, as the sections of a recipe; what they say comes
            before the other arguments.
        folder: Where everything is kept, and from where an interrupted call continues; None for a
            temporary folder that goes with ``session``.
        seed: Of everything random.
        progress: Called with the name of the work, and how many of how many steps are done,
            whenever a candidate, a training step, a network or an engine is.
        note: Called with whatever is worth a line.

    Returns:
        The merged network with plan, certificate, latencies and accuracy.

    Raises:
        UsageError: If an argument cannot be used.
        UnsupportedModelError: If the network cannot be traced or exported.
        CorruptInputError: If weights, images or answers are not finite, or a kept file is damaged.
        DeviceError: If the device is not there, or no network could be built and run.
        InfeasibleBudgetError: If no plan meets the budget; says by how much it is missed.
        DivergedError: If the training does not converge.
    """
    given = dict(settings or {})
    training = {"preset": finetune} if isinstance(finetune, str) else {"options": dict(finetune)}
    given["finetune"] = {**training, **given.get("finetune", {})}
    given["search"] = {"rules": rules, **given.get("search", {})}
    session = Session(
        model,
        example_inputs,
        backend=backend,
        precision=precision,
        folder=folder,
        seed=seed,
        progress=progress,
        note=note,
        settings=given,
    )
    session.measure()
    session.check_goal(speedup=speedup, budget_ms=budget_ms)
    session.score(train_loader)
    session.search(speedup=speedup, budget_ms=budget_ms, val=val_loader, metric=metric)
    session.relax()
    session.repair()
    session.train(val=val_loader, metric=metric)
    session.merge()
    session.export()
    judged = test_loader if test_loader is not None else val_loader
    merged, original = (
        session.quality(network, judged, metric) for network in (session.merged, session.model)
    )
    return Result(session, session.bench(), merged, original)
