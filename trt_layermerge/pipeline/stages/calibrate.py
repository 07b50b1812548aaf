"""``calibrate``: both ONNX models → ``original.int8.onnx``, ``model.int8.onnx``, scales.

Calibrated on training images and judged on others: those of ``val``, or training images that were
not calibrated on. ``test`` is never opened. Where nothing is int8, ``calibration.json`` says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trt_layermerge.core.jsonio import Json, read_json, sha256_bytes, write_bytes, write_json
from trt_layermerge.deploy.sidecar import Network
from trt_layermerge.errors import AccuracyGateError, UsageError
from trt_layermerge.pipeline.context import Context, data_inputs
from trt_layermerge.pipeline.deployed import CALIBRATION, MERGED, TRAINED, master_name
from trt_layermerge.pipeline.qat import train_rounded
from trt_layermerge.pipeline.stage import Stage
from trt_layermerge.pipeline.stages.finetune import save_weights

if TYPE_CHECKING:
    from trt_layermerge.finetune.data import LabelledData
    from trt_layermerge.quantize.choose import Quantized
    from trt_layermerge.quantize.preset import Preset
    from trt_layermerge.quantize.qdq import Ranges

JUDGED_IMAGES = 1000
BATCH = 32
NETWORKS: tuple[Network, ...] = ("original", "merged")
NOT_ASKED = (
    "nothing is measured or built at int8; ask for it with measure.precision or build.precisions"
)


def preset_of(context: Context) -> Preset:
    """Returns how to calibrate. Raises ``UsageError`` or ``CorruptInputError``."""
    from trt_layermerge.quantize.preset import load_preset

    section = context.recipe.calibrate
    return load_preset(Path(section.preset) if section.preset else None, section.options)


def _settings(context: Context) -> Json:
    if not context.recipe.int8:
        return {"int8": False}
    data = context.recipe.data
    epochs, preset = context.recipe.calibrate.qat_epochs, preset_of(context)
    if preset.keep_float:  # before the run remembers a mistyped name
        _presets(preset, _masters(context))
    return {
        "int8": True,
        "preset": preset.to_json(),
        "train": data_inputs(data.train),
        "val": data_inputs(data.val),
        "preprocess": data.preprocess.model_dump(mode="json"),
        "qat": {"epochs": epochs, "seed": context.seed} if epochs else None,
    }


def _run(context: Context) -> tuple[str, ...]:
    path = context.folder / CALIBRATION
    if not context.recipe.int8:
        write_json(path, "calibrations", {"reason": NOT_ASKED, "networks": {}})
        return (CALIBRATION,)
    from trt_layermerge.quantize.table import CalibrationTable

    masters, images = _masters(context), _images(context)
    presets = _presets(preset_of(context), masters)
    networks: Json = {}
    qat = None
    for done, network in enumerate(NETWORKS):
        context.reporter.progress("calibrating networks", done, len(NETWORKS))
        model, preset = masters[network], presets[network]
        if network == "merged" and context.recipe.calibrate.qat_epochs:
            model, found, qat = _trained(context, model, images, preset)
        else:
            found = images.quantise(model, preset)
        name = master_name(network, "int8")
        write_bytes(context.folder / name, found.model)
        table = CalibrationTable.of(model, preset, found).to_json()
        weights = TRAINED if qat is not None and qat["kept"] else MERGED
        networks[network] = {
            "file": name,
            "sha256": sha256_bytes(found.model),
            "weights": weights if network == "merged" else None,
            **table,
        }
        context.reporter.note(_told(network, found, images.judged_on))
    context.reporter.progress("calibrating networks", len(NETWORKS), len(NETWORKS))
    body = {"reason": None, **images.to_json(), "qat": qat, "networks": networks}
    write_json(path, "calibrations", body)
    trained = (TRAINED,) if qat is not None else ()
    return (CALIBRATION, *(master_name(network, "int8") for network in NETWORKS), *trained)


def _masters(context: Context) -> dict[Network, bytes]:
    return {n: (context.folder / master_name(n, "fp32")).read_bytes() for n in NETWORKS}


def _presets(preset: Preset, masters: Mapping[Network, bytes]) -> dict[Network, Preset]:
    """Returns the preset of each network: a name in ``keep_float`` may be one of either only.

    Raises:
        UsageError: If a name is one of neither.
    """
    from trt_layermerge.quantize.qdq import check_names, quantizable

    known = {network: quantizable(model) for network, model in masters.items()}
    check_names(preset.keep_float, list(dict.fromkeys(chain(*known.values()))))
    return {
        network: replace(preset, keep_float=tuple(n for n in preset.keep_float if n in names))
        for network, names in known.items()
    }


@dataclass(frozen=True)
class _Images:
    """What to calibrate on, and what to judge the result on: no image is in both.

    Attributes:
        fit: Training images.
        judged_on: Where the others come from: ``val`` or ``train``.
        pixels: The others ``(N, C, H, W)``.
        labels: Their classes; None where there are no labels.
    """

    fit: LabelledData
    judged_on: str
    pixels: NDArray[np.float32]
    labels: NDArray[np.int64] | None

    def quantise(self, model: bytes, preset: Preset) -> Quantized:
        """Returns a float32 model in int8."""
        from trt_layermerge.quantize.choose import quantize_within

        return quantize_within(model, self.batches(), self.pixels, self.labels, preset)

    def attempt(
        self, model: bytes, ranges: Ranges, preset: Preset
    ) -> tuple[Quantized | None, AccuracyGateError | None]:
        """Returns a float32 model in int8 by known ranges, or why it loses too much."""
        from trt_layermerge.quantize.choose import choose_layers

        try:
            return choose_layers(model, ranges, self.pixels, self.labels, preset), None
        except AccuracyGateError as error:
            return None, error

    def right(self, model: bytes) -> float:
        """Returns the share of the judging images that a model is right on."""
        from trt_layermerge.export.runtime import logits

        return float(np.mean(logits(model, self.pixels).argmax(1) == self.labels))

    def batches(self) -> Iterator[NDArray[np.float32]]:
        """Yields what to calibrate on."""
        from trt_layermerge.finetune.data import batches

        return (images.numpy() for images, _ in batches(self.fit, BATCH))

    def to_json(self) -> Json:
        """Returns how many images come from where."""
        return {
            "calibrated_on": {"source": "train", "images": len(self.fit)},
            "judged_on": {"source": self.judged_on, "images": len(self.pixels)},
        }


def _images(context: Context) -> _Images:
    import torch

    from trt_layermerge.finetune.data import Part, draw, split

    preset, train, val = preset_of(context), context.train, context.data("val")
    judge: LabelledData
    if val is None:
        judge, train = split(train, min(JUDGED_IMAGES, len(train) // 2), preset.seed)
    else:
        judge = draw(val, JUDGED_IMAGES, preset.seed)
    fit = Part(train, torch.from_numpy(preset.sample(len(train))))
    pixels, labels = judge.batch(torch.arange(len(judge)))
    known = None if labels is None else labels.numpy()
    return _Images(fit, "train" if val is None else "val", pixels.numpy(), known)


def _trained(
    context: Context, model: bytes, images: _Images, preset: Preset
) -> tuple[bytes, Quantized, Json]:
    """Returns a float model, it in int8, and what training with rounding came to.

    That is the trained network where it is right at least as often in int8 on the judging images,
    and else the network as it was. The trained weights are written in any case.

    Raises:
        UsageError: If the judging images have no labels.
        AccuracyGateError: If both lose more than the preset allows.
    """
    from trt_layermerge.export.onnx import export_bytes
    from trt_layermerge.quantize.ranges import calibrate_ranges

    if images.labels is None:
        raise UsageError(
            f"calibrate.qat_epochs chooses by accuracy, and the images of {images.judged_on} have "
            "no labels; set it to 0, or give images with labels"
        )
    ranges = calibrate_ranges(model, images.batches(), preset)
    before, failed = images.attempt(model, ranges, preset)
    keep = before.keep_float if before else preset.keep_float
    network = train_rounded(context, model, ranges, keep)
    save_weights(network, context, TRAINED)
    free = context.recipe.build.max_batch is not None
    trained = export_bytes(network, context.example, dynamic_batch=free)
    after, _ = images.attempt(trained, ranges, preset)
    # Training may lose in float already, which the gate of int8 does not see.
    least = max(images.right(model) - preset.max_accuracy_drop, _right(before) if before else 0.0)
    told: Json = {
        "epochs": context.recipe.calibrate.qat_epochs,
        "accuracy_before": before and before.accuracy_int8,
        "accuracy_after": after and after.accuracy_int8,
    }
    if after is not None and _right(after) >= least:
        return trained, after, {**told, "kept": True}
    if before is None:
        assert failed is not None
        raise failed
    return model, before, {**told, "kept": False}


def _right(found: Quantized) -> float:
    return found.accuracy_int8 or 0.0


def _told(network: Network, found: Quantized, source: str) -> str:
    floats = ", ".join(found.keep_float) or "no layer"
    right = f"on {found.images} images of {source} without labels"
    if found.accuracy_int8 is not None and found.accuracy_fp32 is not None:
        right = (
            f"{100 * found.accuracy_int8:.2f} % right on {found.images} images of {source}, "
            f"{100 * found.accuracy_fp32:.2f} % in fp32"
        )
    return (
        f"{network} at int8: {right}, the same answer on {100 * found.agreement:.2f} %; "
        f"left in float: {floats}"
    )


def _result(context: Context) -> Json:
    body = read_json(context.folder / CALIBRATION, "calibrations")
    if not body["networks"]:
        return {"reason": body["reason"]}
    kept = ("file", "accuracy_fp32", "accuracy_int8", "agreement", "keep_float", "layers")
    rows = [
        {"network": network, **{key: table[key] for key in kept}}
        for network, table in body["networks"].items()
    ]
    return {**{k: body[k] for k in ("calibrated_on", "judged_on", "qat")}, "networks": rows}


READS = ("original.onnx", "model.onnx", MERGED)
STAGE = Stage("calibrate", READS, _settings, _run, _result)
