"""``calibration.json``: everything that int8 needs beside the float model itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from trt_layermerge.core.codec import Finite, dump, load
from trt_layermerge.core.jsonio import Json, damage, read_json, sha256_bytes
from trt_layermerge.quantize.choose import Quantized
from trt_layermerge.quantize.preset import Preset
from trt_layermerge.quantize.qdq import Ranges, scale_of

KIND = "calibration"


@dataclass(frozen=True)
class Tensor:
    """One activation: the largest magnitude decides, its scale stands there for readers."""

    magnitude: Annotated[Finite, Field(ge=0)]
    scale: float


@dataclass(frozen=True)
class CalibrationTable:
    """The calibration of one network: ``quantize_model`` makes the same int8 model from it.

    Attributes:
        model_sha256: Hash of the float32 model that it belongs to.
        preset: How it was calibrated; what ``Preset.to_json`` gives.
        tensors: The scale of each activation.
        keep_float: Names of the nodes in float.
        layers: What quantising each layer alone costs.
        images_judged: Number of images that it was judged on.
        agreement: Share of them with the same answer as in float32 (``core.agreement``).
        accuracy_fp32: Share of right classes in float32, or None without labels.
        accuracy_int8: The same in int8.
    """

    model_sha256: str
    preset: Json
    tensors: Mapping[str, Tensor]
    keep_float: tuple[str, ...]
    layers: tuple[Json, ...]
    images_judged: int
    agreement: float
    accuracy_fp32: float | None
    accuracy_int8: float | None

    @classmethod
    def of(cls, model: bytes, preset: Preset, quantized: Quantized) -> CalibrationTable:
        """Returns the table of a float32 model and what was made from it.

        Args:
            model: The float32 ONNX model.
            preset: How it was calibrated.
            quantized: What came of it.
        """
        ranges = quantized.ranges.items()
        return cls(
            model_sha256=sha256_bytes(model),
            preset=preset.to_json(),
            tensors={name: Tensor(largest, scale_of(largest)) for name, largest in ranges},
            keep_float=quantized.keep_float,
            layers=tuple(layer.to_json() for layer in quantized.layers),
            images_judged=quantized.images,
            agreement=quantized.agreement,
            accuracy_fp32=quantized.accuracy_fp32,
            accuracy_int8=quantized.accuracy_int8,
        )

    @property
    def ranges(self) -> Ranges:
        """Largest magnitude of each activation."""
        return {name: tensor.magnitude for name, tensor in self.tensors.items()}

    def to_json(self) -> Json:
        """Returns a JSON-ready mapping."""
        return dump(self)


def load_table(path: Path) -> CalibrationTable:
    """Returns a table.

    Raises:
        UsageError: If there is no such file.
        CorruptInputError: If it is damaged.
    """
    body = read_json(path, KIND)
    with damage(path):
        return load(CalibrationTable, body)
