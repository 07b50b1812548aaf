"""Which layers stay in float: the fewest that keep the loss within the gate."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from trt_layermerge.core.agreement import agreements_of
from trt_layermerge.core.agreement import right as right_classes
from trt_layermerge.core.inputs import parts_of
from trt_layermerge.core.jsonio import Json, sha256_bytes
from trt_layermerge.core.outputs import Kinds, judged_by, kinds_of
from trt_layermerge.errors import AccuracyGateError, UsageError
from trt_layermerge.export.runtime import Images, outputs_of
from trt_layermerge.quantize.preset import Preset
from trt_layermerge.quantize.qdq import (
    Ranges,
    check_names,
    quantizable,
    quantize_model,
    scale_of,
)
from trt_layermerge.quantize.sensitivity import LayerError, sensitivities

SENSITIVITY_IMAGES = 64


@dataclass(frozen=True, slots=True)
class Quantized:
    """A network in int8, and what it lost.

    Attributes:
        model: The Q/DQ model, its fallback float32.
        ranges: Largest magnitude of each activation.
        keep_float: Names of the nodes that stay in float, in the order of the graph.
        layers: What quantising each layer alone costs.
        images: Number of images that it was judged on.
        agreement: Share of them with the same answer as in float32 (``core.agreement``).
        accuracy_fp32: Share of right classes in float32, or None without labels.
        accuracy_int8: The same in int8.
    """

    model: bytes = field(repr=False)
    ranges: Ranges = field(repr=False)
    keep_float: tuple[str, ...]
    layers: tuple[LayerError, ...]
    images: int
    agreement: float
    accuracy_fp32: float | None
    accuracy_int8: float | None

    @property
    def loss(self) -> float:
        """Accuracy lost, as a share; without labels or classes, the share of changed answers."""
        if self.accuracy_fp32 is None or self.accuracy_int8 is None:
            return 1 - self.agreement
        return self.accuracy_fp32 - self.accuracy_int8

    def within(self, allowed: float) -> bool:
        """Returns whether no more is lost than a share, up to rounding."""
        return self.loss <= allowed + 1e-9

    def to_json(self, model: bytes, preset: Preset) -> Json:
        """Returns what ``calibration.json`` says: all that int8 needs beside the float32 model."""
        return {
            "model_sha256": sha256_bytes(model),
            "preset": preset.to_json(),
            "tensors": {
                name: {"magnitude": largest, "scale": scale_of(largest)}
                for name, largest in self.ranges.items()
            },
            "keep_float": list(self.keep_float),
            "layers": [layer.to_json() for layer in self.layers],
            "images_judged": self.images,
            "agreement": self.agreement,
            "accuracy_fp32": self.accuracy_fp32,
            "accuracy_int8": self.accuracy_int8,
        }


def choose_layers(
    model: bytes,
    ranges: Ranges,
    images: Images,
    labels: NDArray[np.int64] | None,
    preset: Preset,
    kinds: Kinds | None = None,
) -> Quantized:
    """Returns the int8 model with the fewest layers in float whose loss is within the preset's.

    Everything is quantised first. If that loses too much, the layers that cost most alone (by
    ``kl``) go back to float: 1, 2, 4 and so on until the gate holds, then as many fewer as a
    bisection finds.

    Args:
        model: A float32 ONNX model.
        ranges: Largest magnitude of each activation.
        images: What the loss is judged on ``(N, C, H, W)``; not the test set.
        labels: Classes ``(N,)``, or None: then the share of changed answers is judged.
        preset: ``max_accuracy_drop``, ``max_float_layers`` and ``keep_float``.
        kinds: What the outputs are (``core.outputs``); by default what their shapes tell.

    Raises:
        UsageError: If there is no image, or ``keep_float`` names an unknown node.
        AccuracyGateError: If the loss is too large even with ``max_float_layers`` in float.
        The errors of ``quantize_model`` and ``sensitivities``.
    """
    if len(images) == 0:
        raise UsageError("no images were given to judge int8 on; give at least one")
    names = quantizable(model)
    check_names(preset.keep_float, names)
    exact = outputs_of(model, images)
    if kinds is None:
        kinds = kinds_of(exact, parts_of(images)[0].shape)
    # Where no output tells these classes apart, there is nothing to be right about.
    told = None if labels is None else judged_by(labels, exact, kinds)

    def quantised(more: Collection[str]) -> Quantized:
        """Returns the model with these layers in float beside those that always are."""
        keep = tuple(name for name in names if name in preset.keep_float or name in more)
        made = quantize_model(model, ranges, keep)
        found = outputs_of(made, images)
        right = [
            None
            if told is None or labels is None
            else float(right_classes(outputs[told], labels).mean())
            for outputs in (exact, found)
        ]
        same = float(agreements_of(exact, found, kinds).mean())
        return Quantized(made, ranges, keep, (), len(images), same, *right)

    some = images[:SENSITIVITY_IMAGES]
    best = quantised(())
    if best.within(preset.max_accuracy_drop):
        return replace(best, layers=sensitivities(model, ranges, some, 0, kinds))
    layers = sensitivities(model, ranges, some, kinds=kinds)
    order = [name for name in _worst_first(layers) if name not in preset.keep_float]
    most = min(preset.max_float_layers, len(order) - 1)

    def attempt(count: int) -> Quantized | None:
        nonlocal best
        found = quantised(order[:count])
        if found.within(preset.max_accuracy_drop):
            return found
        best = min(best, found, key=lambda quantized: quantized.loss)
        return None

    chosen = _fewest(attempt, most)
    if chosen is None:
        raise AccuracyGateError(_refusal(best, preset, most))
    return replace(chosen, layers=layers)


def _worst_first(layers: tuple[LayerError, ...]) -> list[str]:
    ranked = sorted(layers, key=lambda layer: (-(layer.kl or 0.0), layer.sqnr_db))
    return [layer.name for layer in ranked]


def _fewest(attempt: Callable[[int], Quantized | None], most: int) -> Quantized | None:
    """Returns the attempt of the smallest count that succeeds, if success is monotonic."""
    failed, count, found = 0, 1, None
    while found is None and failed < most:
        count = min(max(1, 2 * failed), most)
        found = attempt(count)
        if found is None:
            failed = count
    while found is not None and count - failed > 1:
        middle = (failed + count) // 2
        better = attempt(middle)
        if better is None:
            failed = middle
        else:
            found, count = better, middle
    return found


def _refusal(best: Quantized, preset: Preset, most: int) -> str:
    loss = f"{100 * best.loss:.2f} points"
    if best.accuracy_fp32 is None or best.accuracy_int8 is None:
        share = f"{100 * best.loss:.2f}% of {best.images} images"
        figures = f"int8 changes the class of (or the number for) {share}"
    else:
        figures = (
            f"int8 loses {loss} of accuracy on {best.images} images "
            f"({best.accuracy_fp32:.2%} to {best.accuracy_int8:.2%})"
        )
    kept = ", ".join(best.keep_float) or "none"
    return (
        f"{figures}, more than the {100 * preset.max_accuracy_drop:.2f} allowed, at best, with at "
        f"most {most} layers more in float (best: {kept}); calibrate with another method than "
        f"{preset.method} or more images, raise max_float_layers or max_accuracy_drop of the "
        "preset, or choose --precision fp16"
    )
