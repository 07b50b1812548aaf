"""Images -> the magnitude that the scale of every activation covers.

Two passes: the first finds the largest magnitudes, the second fills histograms of a fixed number of
bins from zero to these. Memory and time do not depend on what is in the images, nor on their order.
Where a histogram is cut, ONNX Runtime's own calibrator says.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from trt_layermerge.errors import CorruptInputError
from trt_layermerge.export.runtime import (
    Images,
    batch_of,
    magnitudes,
    open_model,
    rebatch,
    runtime,
    with_outputs,
)
from trt_layermerge.quantize.preset import Preset
from trt_layermerge.quantize.qdq import Ranges, activations

FIXED_MAGNITUDE = 6.0
HISTOGRAM_BINS = 2048
ENTROPY_LEVELS = 128
"""With a bin for each level, nothing could ever be left out."""


def calibrate_ranges(model: bytes, batches: Iterable[Images], preset: Preset) -> Ranges:
    """Returns the magnitude that the scale of each activation must cover.

    Batches are run one by one, so memory holds the activations of one batch. The result depends on
    the images; on nothing random.

    Args:
        model: A float32 ONNX model.
        batches: Preprocessed images ``(N, C, H, W)``. They are gone through twice: of an iterator,
            which cannot be, all images are kept meanwhile.
        preset: Method and percentile.

    Raises:
        MissingDependencyError: If ONNX Runtime is not installed.
        CorruptInputError: If an image or an activation is not finite.
        UsageError: If there is no image.
        DeviceError: If ONNX Runtime cannot run the model.
    """
    if preset.method != "minmax" and isinstance(batches, Iterator):
        batches = [*batches]
    ranges = magnitudes(model, batches, activations(model))
    for name, value in ranges.items():
        if not np.isfinite(value):
            raise CorruptInputError(
                f"the activation {name!r} reaches {value} on the calibration images; "
                "check the weights and the preprocessing"
            )
    heard = {name: value for name, value in ranges.items() if value}
    if preset.method == "minmax" or not heard:
        return ranges
    return {**ranges, **_cut(model, batches, heard, preset)}


def fixed_ranges(model: bytes) -> Ranges:
    """Returns magnitude 6 for every activation: for latency, which no scale changes; no data."""
    return dict.fromkeys(activations(model), FIXED_MAGNITUDE)


def _histograms(
    model: bytes, batches: Iterable[Images], ranges: Ranges, *, signed: bool
) -> dict[str, NDArray[np.int64]]:
    """Returns how many values fall into each of the bins up to their largest magnitude."""
    run = open_model(with_outputs(model, ranges))
    counts = {name: np.zeros(HISTOGRAM_BINS, np.int64) for name in ranges}
    for batch in rebatch(batches, batch_of(model)):
        for (name, largest), values in zip(ranges.items(), run(batch), strict=True):
            # Rounded otherwise in this pass, the largest may be beyond itself.
            inside = np.clip(values if signed else np.abs(values), -largest, largest)
            limits = (-largest if signed else 0.0, largest)
            counts[name] += np.histogram(inside, HISTOGRAM_BINS, limits)[0]
    return counts


def _cut(model: bytes, batches: Iterable[Images], ranges: Ranges, preset: Preset) -> Ranges:
    """Returns where ONNX Runtime cuts the histograms; for ``entropy`` it wants both signs."""
    runtime()
    from onnxruntime.quantization.calibrate import HistogramCollector

    signed = preset.method == "entropy"
    counts = _histograms(model, batches, ranges, signed=signed)
    collector = HistogramCollector(
        preset.method, True, HISTOGRAM_BINS, ENTROPY_LEVELS, preset.percentile, None
    )
    for name, largest in ranges.items():
        least, most = np.float32(-largest), np.float32(largest)
        edges = np.linspace(least if signed else 0, most, HISTOGRAM_BINS + 1, dtype=np.float32)
        collector.histogram_dict[name] = (counts[name], edges, least, most, most)
    with contextlib.redirect_stdout(io.StringIO()):
        found = collector.compute_collection_result()
    return {name: max(abs(float(limit)) for limit in found[name][:2]) for name in ranges}
