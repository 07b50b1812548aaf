"""Both ONNX models → ``original.int8.onnx``, ``model.int8.onnx``, and the scales.

Calibrated on training images and judged on others: those of ``val``, or training images that were
not calibrated on. ``test`` is never opened.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from trt_layermerge.core.agreement import right
from trt_layermerge.core.callbacks import Callbacks
from trt_layermerge.core.inputs import Several, mapped
from trt_layermerge.core.jsonio import Json, sha256_bytes, write_bytes, write_json
from trt_layermerge.core.outputs import Kinds, judged_by
from trt_layermerge.data import LabelledData, Part, batches, draw, split
from trt_layermerge.deploy.sidecar import Network
from trt_layermerge.errors import AccuracyGateError, UsageError
from trt_layermerge.export.onnx import export_bytes
from trt_layermerge.export.runtime import Images, outputs_of
from trt_layermerge.quantize.choose import Quantized, choose_layers
from trt_layermerge.quantize.preset import Preset, load_preset
from trt_layermerge.quantize.qdq import Ranges, check_names, quantizable
from trt_layermerge.quantize.ranges import calibrate_ranges
from trt_layermerge.session.deployed import CALIBRATION, MERGED, TRAINED, master_name
from trt_layermerge.session.qat import STATE, train_rounded
from trt_layermerge.session.settings import CalibrateSection, Settings

JUDGED_IMAGES = 1000
BATCH = 32
NETWORKS: tuple[Network, ...] = ("original", "merged")


def preset_of(section: CalibrateSection) -> Preset:
    """Returns how to calibrate. Raises ``UsageError`` or ``CorruptInputError``."""
    return load_preset(Path(section.preset) if section.preset else None, section.options)


def masters_in(folder: Path) -> dict[Network, bytes]:
    """Returns the float32 ONNX models in a folder. Raises ``UsageError`` if one is not there."""
    paths = {network: folder / master_name(network, "fp32") for network in NETWORKS}
    for path in paths.values():
        if not path.is_file():
            raise UsageError(f"there is no {path} to quantise; export the networks first (export)")
    return {network: path.read_bytes() for network, path in paths.items()}


def quantize_networks(
    folder: Path,
    original: nn.Module,
    merged: nn.Module,
    example: Any,
    train: LabelledData,
    val: LabelledData | None,
    settings: Settings,
    tell: Callbacks,
    kinds: Kinds,
) -> tuple[str, ...]:
    """Writes both exported networks in int8, and ``calibration.json``; returns the files' names.

    Args:
        folder: Where the float32 ONNX models are, and where the others go.
        original: The original network, which teaches where rounding is trained.
        merged: The merged network, which may be trained with int8's rounding; left untouched.
        example: An input ``(N, C, H, W)``, or several, of the exported batch.
        train: Images to calibrate on.
        val: Images to judge by, or None to judge on training images.
        settings: How to calibrate.
        tell: What is called meanwhile.
        kinds: What the outputs are (``core.outputs``).

    Raises:
        UsageError: If rounding is to be trained without labels, or a name is unknown.
        AccuracyGateError: If int8 loses more than the preset allows.
    """
    if settings.calibrate.qat_epochs and isinstance(example, Several):
        raise UsageError(
            "calibrate.qat_epochs trains with int8's rounding, and networks of several inputs are "
            "not; set it to 0"
        )
    preset = preset_of(settings.calibrate)
    masters, images = masters_in(folder), _images(train, val, preset, kinds)
    presets = presets_of(preset, masters)
    networks: Json = {}
    qat = None
    for done, network in enumerate(NETWORKS):
        tell.progress("calibrating networks", done, len(NETWORKS))
        model, own = masters[network], presets[network]
        if network == "merged" and settings.calibrate.qat_epochs:
            trained = _Rounding(folder, original, merged, example, train, settings, tell)
            model, found, qat = trained.quantise(model, images, own)
        else:
            found = images.quantise(model, own)
        name = master_name(network, "int8")
        write_bytes(folder / name, found.model)
        weights = TRAINED if qat is not None and qat["kept"] else MERGED
        networks[network] = {
            "file": name,
            "sha256": sha256_bytes(found.model),
            "weights": weights if network == "merged" else None,
            **found.to_json(model, own),
        }
        tell.note(_told(network, found, images.judged_on))
    tell.progress("calibrating networks", len(NETWORKS), len(NETWORKS))
    body = {"reason": None, **images.to_json(), "qat": qat, "networks": networks}
    write_json(folder / CALIBRATION, "calibrations", body)
    written = (CALIBRATION, *(master_name(network, "int8") for network in NETWORKS))
    return (*written, TRAINED) if qat is not None else written


def presets_of(preset: Preset, masters: Mapping[Network, bytes]) -> dict[Network, Preset]:
    """Returns the preset of each network: a name in ``keep_float`` may be one of either only.

    Raises:
        UsageError: If a name is one of neither.
    """
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
        pixels: The others ``(N, C, H, W)``, or several inputs (``core.inputs``).
        labels: Their classes; None where there are no labels.
        kinds: What the network's outputs are.
    """

    fit: LabelledData
    judged_on: str
    pixels: Images
    labels: NDArray[np.int64] | None
    kinds: Kinds

    def quantise(self, model: bytes, preset: Preset) -> Quantized:
        """Returns a float32 model in int8."""
        ranges = calibrate_ranges(model, self.batches, preset)
        return choose_layers(model, ranges, self.pixels, self.labels, preset, self.kinds)

    def attempt(
        self, model: bytes, ranges: Ranges, preset: Preset
    ) -> tuple[Quantized | None, AccuracyGateError | None]:
        """Returns a float32 model in int8 by known ranges, or why it loses too much."""
        try:
            found = choose_layers(model, ranges, self.pixels, self.labels, preset, self.kinds)
            return found, None
        except AccuracyGateError as error:
            return None, error

    def right(self, model: bytes) -> float:
        """Returns the share of the judging images that a model is right on."""
        outputs = outputs_of(model, self.pixels)
        told = None if self.labels is None else judged_by(self.labels, outputs, self.kinds)
        if told is None or self.labels is None:
            raise UsageError(
                "calibrate.qat_epochs chooses by accuracy, and no output is logits of the classes "
                "that the labels tell; set it to 0, or say what the outputs are for (task)"
            )
        return float(right(outputs[told], self.labels).mean())

    @property
    def batches(self) -> Iterable[Images]:
        """What to calibrate on, as often as it is gone through."""
        return _Batches(self.fit)

    def to_json(self) -> Json:
        """Returns how many images come from where."""
        return {
            "calibrated_on": {"source": "train", "images": len(self.fit)},
            "judged_on": {"source": self.judged_on, "images": len(self.pixels)},
        }


@dataclass(frozen=True)
class _Batches:
    """Images batch by batch, as often as they are asked for."""

    fit: LabelledData

    def __iter__(self) -> Iterator[Images]:
        return (mapped(Tensor.numpy, images) for images, _ in batches(self.fit, BATCH))


def _images(train: LabelledData, val: LabelledData | None, preset: Preset, kinds: Kinds) -> _Images:
    judge: LabelledData
    if val is None:
        judge, train = split(train, min(JUDGED_IMAGES, len(train) // 2), preset.seed)
    else:
        judge = draw(val, JUDGED_IMAGES, preset.seed)
    fit = Part(train, torch.from_numpy(preset.sample(len(train))))
    pixels, labels = judge.batch(torch.arange(len(judge)))
    known = None if labels is None else labels.numpy()
    return _Images(
        fit, "train" if val is None else "val", mapped(Tensor.numpy, pixels), known, kinds
    )


@dataclass(frozen=True)
class _Rounding:
    """Trains the merged network with int8's rounding; arguments of ``quantize_networks``."""

    folder: Path
    original: nn.Module
    merged: nn.Module
    example: Any
    train: LabelledData
    settings: Settings
    tell: Callbacks

    def quantise(
        self, model: bytes, images: _Images, preset: Preset
    ) -> tuple[bytes, Quantized, Json]:
        """Returns a float model, it in int8, and what training with rounding came to.

        That is the trained network where it is right at least as often in int8 on the judging
        images, and else the network as it was. The trained weights are written in any case.

        Raises:
            UsageError: If the judging images have no labels.
            AccuracyGateError: If both lose more than the preset allows.
        """
        epochs = self.settings.calibrate.qat_epochs
        if images.labels is None:
            raise UsageError(
                "calibrate.qat_epochs chooses by accuracy, and the images of "
                f"{images.judged_on} have no labels; set it to 0, or give images with labels"
            )
        ranges = calibrate_ranges(model, images.batches, preset)
        before, failed = images.attempt(model, ranges, preset)
        network = self._trained(model, ranges, before.keep_float if before else preset.keep_float)
        save_weights(network, self.folder / TRAINED)
        free = self.settings.build.max_batch is not None
        trained = export_bytes(network, self.example, dynamic_batch=free)
        after, _ = images.attempt(trained, ranges, preset)
        # Training may lose in float already, which the gate of int8 does not see.
        float_least = images.right(model) - preset.max_accuracy_drop
        least = max(float_least, _right(before) if before else 0.0)
        told: Json = {
            "epochs": epochs,
            "accuracy_before": before and before.accuracy_int8,
            "accuracy_after": after and after.accuracy_int8,
        }
        if after is not None and _right(after) >= least:
            return trained, after, {**told, "kept": True}
        if before is None:
            assert failed is not None
            raise failed
        return model, before, {**told, "kept": False}

    def _trained(self, model: bytes, ranges: Ranges, keep_float: Collection[str]) -> nn.Module:
        return train_rounded(
            self.merged,
            self.original,
            self.train,
            model,
            ranges,
            keep_float,
            batch=len(self.example),
            epochs=self.settings.calibrate.qat_epochs,
            seed=self.settings.seed,
            device=self.settings.device,
            state_path=self.folder / STATE,
            tell=self.tell,
        )


def save_weights(network: nn.Module, path: Path) -> None:
    """Writes the tensors of a network as safetensors, whole or not at all."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    write_bytes(path, save(tensors))


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
