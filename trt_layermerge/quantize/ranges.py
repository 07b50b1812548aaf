"""Images -> the largest magnitude of every activation, by ONNX Runtime's own calibrators."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from trt_layermerge.errors import CorruptInputError, DeviceError
from trt_layermerge.export.runtime import Images, batch_of, rebatch, runtime
from trt_layermerge.quantize.preset import Preset
from trt_layermerge.quantize.qdq import Ranges, activations

FIXED_MAGNITUDE = 6.0
HISTOGRAM_BINS = 2048
ENTROPY_LEVELS = 128


def calibrate_ranges(model: bytes, batches: Iterable[Images], preset: Preset) -> Ranges:
    """Returns the magnitude that the scale of each activation must cover.

    Batches are run one by one, so memory holds the activations of one batch. The result depends on
    the images, for the two histogram methods also on how they are batched; on nothing random.

    Args:
        model: A float32 ONNX model.
        batches: Preprocessed images ``(N, C, H, W)``.
        preset: Method and percentile.

    Raises:
        MissingDependencyError: If ONNX Runtime is not installed.
        CorruptInputError: If an image or an activation is not finite.
        UsageError: If there is no image.
        DeviceError: If ONNX Runtime cannot run the model.
    """
    wanted = activations(model)
    chunks = rebatch(batches, batch_of(model))
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        calibrator = _calibrator(model, Path(folder), preset, wanted)
        name = calibrator.infer_session.get_inputs()[0].name
        for chunk in chunks:
            _collect(calibrator, {name: chunk})
        found = calibrator.compute_data()
        ranges = {name: _magnitude(name, found[name].range_value) for name in wanted}
        calibrator.infer_session = None
    return ranges


def fixed_ranges(model: bytes) -> Ranges:
    """Returns magnitude 6 for every activation: for latency, which no scale changes; no data."""
    return dict.fromkeys(activations(model), FIXED_MAGNITUDE)


def _calibrator(model: bytes, folder: Path, preset: Preset, wanted: tuple[str, ...]) -> Any:
    """Returns a calibrator that is ready to collect the wanted activations only."""
    runtime()
    from onnxruntime.quantization import calibrate

    source, augmented = folder / "model.onnx", str(folder / "augmented.onnx")
    source.write_bytes(model)
    ways: dict[str, tuple[Any, dict[str, Any]]] = {
        "minmax": (calibrate.MinMaxCalibrater, {}),
        # With its default of 128 bins for 128 levels, nothing could ever be left out.
        "entropy": (
            calibrate.EntropyCalibrater,
            {"num_bins": HISTOGRAM_BINS, "num_quantized_bins": ENTROPY_LEVELS},
        ),
        "percentile": (
            calibrate.PercentileCalibrater,
            {"num_bins": HISTOGRAM_BINS, "percentile": preset.percentile},
        ),
    }
    kind, options = ways[preset.method]
    made = kind(source, None, augmented, symmetric=True, **options)
    every, infos = made.select_tensors_to_calibrate(made.model)
    made.select_tensors_to_calibrate = lambda _: ([n for n in wanted if n in every], infos)
    made.augment_graph()
    made.create_inference_session()
    return made


class _OneBatch:
    """What a calibrator reads from: one batch, then None."""

    def __init__(self, inputs: dict[str, Images]) -> None:
        self._inputs: dict[str, Images] | None = inputs

    def get_next(self) -> dict[str, Images] | None:
        inputs, self._inputs = self._inputs, None
        return inputs


def _collect(calibrator: Any, inputs: dict[str, Images]) -> None:
    try:
        calibrator.collect_data(_OneBatch(inputs))
    except Exception as error:  # ONNX Runtime has no common class for its errors
        raise DeviceError(
            f"ONNX Runtime cannot calibrate the network on images of shape "
            f"{next(iter(inputs.values())).shape}: {error}"
        ) from error


def _magnitude(name: str, limits: tuple[Any, Any]) -> float:
    value = max(abs(float(np.asarray(limit).max())) for limit in limits)
    if not np.isfinite(value):
        raise CorruptInputError(
            f"the activation {name!r} reaches {value} on the calibration images; "
            "check the weights and the preprocessing"
        )
    return value
