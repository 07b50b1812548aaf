"""How to calibrate: the method, the images, and what the result may lose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import yaml
from numpy.typing import NDArray

from trt_layermerge.core.jsonio import Json
from trt_layermerge.errors import CorruptInputError, UsageError

Method: TypeAlias = Literal["minmax", "entropy", "percentile"]
METHODS: tuple[Method, ...] = ("minmax", "entropy", "percentile")


@dataclass(frozen=True, slots=True)
class Preset:
    """A calibration preset; the defaults are those of ``calib/presets/default.yaml``.

    Attributes:
        method: How the magnitude that a scale covers is found: ``minmax`` takes the largest seen,
            ``percentile`` and ``entropy`` leave out the rarest.
        percentile: Share of the values in percent that ``percentile`` covers.
        images: How many training images to calibrate on, or all where there are fewer.
        seed: What draws them.
        max_accuracy_drop: Accuracy that may be lost, as a share; 0.01 is one point.
        max_float_layers: How many layers may stay in float to keep the loss within that.
        keep_float: Names of ONNX nodes that stay in float whatever they cost; not counted above.
    """

    method: Method = "percentile"
    percentile: float = 99.99
    images: int = 512
    seed: int = 0
    max_accuracy_drop: float = 0.01
    max_float_layers: int = 8
    keep_float: tuple[str, ...] = ()

    def sample(self, total: int) -> NDArray[np.int64]:
        """Returns the sorted indices of the images to calibrate on, out of ``total``."""
        chosen = np.random.default_rng(self.seed).permutation(total)[: self.images]
        return np.sort(chosen).astype(np.int64)

    def to_json(self) -> Json:
        """Returns a JSON-ready mapping."""
        return {**asdict(self), "keep_float": list(self.keep_float)}


def load_preset(path: Path | None, overrides: Mapping[str, Any]) -> Preset:
    """Returns the preset of a YAML file, or the default one, with some values replaced.

    Raises:
        UsageError: If there is no such file, or a key or a value is not one of a preset.
        CorruptInputError: If the file is no YAML mapping.
    """
    body = {**(_read(path) if path else {}), **overrides}
    known = [field.name for field in fields(Preset)]
    unknown = sorted(set(body) - set(known))
    if unknown:
        raise UsageError(
            f"a calibration preset has no {', '.join(map(repr, unknown))}; "
            f"it has {', '.join(known)}"
        )
    for name, value in body.items():
        fits, words = _RULES[name]
        if not fits(value):
            raise UsageError(f"{name} of a calibration preset must be {words}, not {value!r}")
    if "keep_float" in body:
        body["keep_float"] = tuple(body["keep_float"])
    return Preset(**body)


def _read(path: Path) -> dict[str, Any]:
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot read the calibration preset {path}: {error.strerror or error}; "
            "give the path of a YAML file, such as calib/presets/default.yaml"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        words = " ".join(str(error).split())
        raise CorruptInputError(f"the preset {path} is not valid YAML: {words}") from error
    if not isinstance(body, dict):
        raise CorruptInputError(f"the preset {path} is not a mapping of names to values")
    return body


def _whole(smallest: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= smallest


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and low <= value <= high


def _names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "method": (lambda value: value in METHODS, f"one of {', '.join(METHODS)}"),
    "percentile": (_number(50, 100), "a number from 50 to 100"),
    "images": (_whole(1), "a whole number of at least 1"),
    "seed": (_whole(0), "a whole number of at least 0"),
    "max_accuracy_drop": (_number(0, 1), "a share from 0 to 1, such as 0.01 for one point"),
    "max_float_layers": (_whole(0), "a whole number of at least 0"),
    "keep_float": (_names, "a list of names of ONNX nodes"),
}
