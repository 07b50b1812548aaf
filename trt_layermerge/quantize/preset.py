"""How to calibrate: the method, the images, and what the result may lose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from trt_layermerge.core.codec import adapter, dump
from trt_layermerge.core.jsonio import Json, read_small
from trt_layermerge.core.strict_yaml import load_yaml
from trt_layermerge.errors import CorruptInputError, UsageError

Method: TypeAlias = Literal["minmax", "entropy", "percentile"]
METHODS: tuple[Method, ...] = get_args(Method)
Whole: TypeAlias = Annotated[int, Field(strict=True)]
NATURAL = "a whole number of at least 0"


@dataclass(frozen=True, slots=True)
class Preset:
    """A calibration preset; the defaults are those of ``calib/presets/default.yaml``.

    The descriptions of the fields are what a refusal of another value says.

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

    method: Annotated[Method, Field(description=f"one of {', '.join(METHODS)}")] = "percentile"
    percentile: Annotated[
        float, Field(strict=True, ge=50, le=100, description="a number from 50 to 100")
    ] = 99.99
    images: Annotated[Whole, Field(ge=1, description="a whole number of at least 1")] = 512
    seed: Annotated[Whole, Field(ge=0, description=NATURAL)] = 0
    max_accuracy_drop: Annotated[
        float,
        Field(
            strict=True, ge=0, le=1, description="a share from 0 to 1, such as 0.01 for one point"
        ),
    ] = 0.01
    max_float_layers: Annotated[Whole, Field(ge=0, description=NATURAL)] = 8
    keep_float: Annotated[tuple[str, ...], Field(description="a list of names of ONNX nodes")] = ()

    def sample(self, total: int) -> NDArray[np.int64]:
        """Returns the sorted indices of the images to calibrate on, out of ``total``."""
        chosen = np.random.default_rng(self.seed).permutation(total)[: self.images]
        return np.sort(chosen).astype(np.int64)

    def to_json(self) -> Json:
        """Returns a JSON-ready mapping."""
        return dump(self)


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
    try:
        preset: Preset = adapter(Preset).validate_python(body)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        words = adapter(Preset).json_schema()["properties"][name]["description"]
        raise UsageError(
            f"{name} of a calibration preset must be {words}, not {body[name]!r}"
        ) from error
    return preset


def _read(path: Path) -> dict[str, Any]:
    try:
        body = load_yaml(read_small(path).decode())
    except OSError as error:
        raise UsageError(
            f"cannot read the calibration preset {path}: {error.strerror or error}; "
            "give the path of a YAML file, such as calib/presets/default.yaml"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        words = " ".join(str(error).split())
        raise CorruptInputError(f"the preset {path} is not valid YAML: {words}") from error
    if not isinstance(body, dict):
        raise CorruptInputError(f"the preset {path} is not a mapping of names to values")
    return body
