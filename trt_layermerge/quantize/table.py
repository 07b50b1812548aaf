"""``calibration.json``: everything that int8 needs beside the float model itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_layermerge.core.jsonio import Json, damage, read_json, sha256_bytes, write_json
from trt_layermerge.errors import UsageError
from trt_layermerge.quantize.choose import Quantized
from trt_layermerge.quantize.preset import Preset
from trt_layermerge.quantize.qdq import Ranges, quantize_model, scale_of

KIND = "calibration"


@dataclass(frozen=True)
class CalibrationTable:
    """The calibration of one network: ``rebuild`` makes the same int8 model from it.

    Attributes:
        model_sha256: Hash of the float32 model that it belongs to.
        preset: How it was calibrated; what ``Preset.to_json`` gives.
        ranges: Largest magnitude of each activation; its scale is ``scale_of`` that.
        keep_float: Names of the nodes in float.
        result: Figures per layer and of the whole; what ``Quantized.to_json`` gives.
    """

    model_sha256: str
    preset: Json
    ranges: Ranges
    keep_float: tuple[str, ...]
    result: Json

    @classmethod
    def of(cls, model: bytes, preset: Preset, quantized: Quantized) -> CalibrationTable:
        """Returns the table of a float32 model and what was made from it."""
        return cls(
            model_sha256=sha256_bytes(model),
            preset=preset.to_json(),
            ranges=quantized.ranges,
            keep_float=quantized.keep_float,
            result=quantized.to_json(),
        )

    def rebuild(self, model: bytes) -> bytes:
        """Returns the int8 model. Raises ``UsageError`` if it is not the calibrated model."""
        if sha256_bytes(model) != self.model_sha256:
            raise UsageError(
                "this calibration belongs to another model "
                f"(sha256 {self.model_sha256[:12]}, not {sha256_bytes(model)[:12]}); "
                "calibrate this one"
            )
        return quantize_model(model, self.ranges, self.keep_float)

    def to_json(self) -> Json:
        """Returns a JSON-ready mapping; scales stand in it for readers, magnitudes decide."""
        tensors = {
            name: {"magnitude": magnitude, "scale": scale_of(magnitude)}
            for name, magnitude in self.ranges.items()
        }
        return {
            "model_sha256": self.model_sha256,
            "preset": self.preset,
            "tensors": tensors,
            **self.result,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> CalibrationTable:
        """Returns the table that ``to_json`` wrote.

        Raises:
            KeyError, TypeError, ValueError: If a field is missing or malformed.
        """
        result = {k: v for k, v in body.items() if k not in ("model_sha256", "preset", "tensors")}
        return cls(
            model_sha256=str(body["model_sha256"]),
            preset=dict(body["preset"]),
            ranges={name: _magnitude(entry) for name, entry in body["tensors"].items()},
            keep_float=tuple(str(name) for name in body["keep_float"]),
            result=result,
        )


def save_table(path: Path, table: CalibrationTable) -> None:
    """Writes a table. Raises ``DeviceError`` if it cannot be written."""
    write_json(path, KIND, table.to_json())


def load_table(path: Path) -> CalibrationTable:
    """Returns a table.

    Raises:
        UsageError: If there is no such file.
        CorruptInputError: If it is damaged.
    """
    body = read_json(path, KIND)
    body.pop("schema")
    with damage(path):
        return CalibrationTable.from_json(body)


def _magnitude(entry: Mapping[str, Any]) -> float:
    value = float(entry["magnitude"])
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"a magnitude is {value}")
    return value
