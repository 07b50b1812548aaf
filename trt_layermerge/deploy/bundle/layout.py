"""Where the parts of a bundle lie, whatever it is for."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from trt_layermerge.core.jsonio import schema_name
from trt_layermerge.deploy.bundle.contents import Contents, Files
from trt_layermerge.deploy.sidecar import KIND
from trt_layermerge.errors import UsageError

Place: TypeAlias = Literal["engine", "sidecar", "onnx", "onnxruntime"]


@dataclass(frozen=True)
class Layout:
    """What a target wants.

    Attributes:
        places: Path of the engine, of its sidecar, of the ONNX model that it is built from, and of
            the one that ONNX Runtime runs; the last two may be one file.
        usage: How to use the bundle, in Markdown.
        files: Everything that only this target has, by path.
    """

    places: Mapping[Place, str]
    usage: str
    files: Files = field(default_factory=dict)


def parts(contents: Contents, places: Mapping[Place, str]) -> dict[str, tuple[str, bytes]]:
    """Returns path and content of every part of a bundle by its role."""
    found = {
        "onnx": (places["onnx"], contents.models[contents.precision]),
        "onnxruntime": (places["onnxruntime"], contents.runnable),
        "recipe": ("recipe.yaml", contents.recipe.encode()),
        "expected": ("expected.npz", _expected(contents)),
    }
    for precision, model in contents.models.items():
        if precision != contents.precision:
            found[f"onnx.{precision}"] = (f"onnx/model.{precision}.onnx", model)
    if contents.portable is not None:
        beside = "onnx/model.int8.portable.onnx"
        place = places["onnxruntime"] if contents.precision == "int8" else beside
        found["portable"] = (place, contents.portable)
    if contents.engine is not None:
        body = {"schema": schema_name(KIND), **contents.engine.sidecar.to_json()}
        found["engine"] = (places["engine"], contents.engine.plan)
        found["sidecar"] = (places["sidecar"], json.dumps(body, indent=1).encode() + b"\n")
    if contents.calibration is not None:
        found["calibration"] = ("calibration.json", contents.calibration.encode())
    return found


def onnx_places(contents: Contents, typed: str, portable: str) -> dict[Place, str]:
    """Returns where the ONNX models lie; only int8 has another one for ONNX Runtime.

    Args:
        contents: What is bundled.
        typed: Path of the ONNX model that engines are built from.
        portable: Path of the one that ONNX Runtime runs at int8.
    """
    return {"onnx": typed, "onnxruntime": portable if contents.precision == "int8" else typed}


def flat_places(contents: Contents) -> dict[Place, str]:
    """Returns where engine and ONNX model lie for a server that is told both by its settings."""
    stem = engine_stem(contents)
    places = onnx_places(contents, "model.onnx", "onnx/model.int8.portable.onnx")
    return {**places, "engine": f"{stem}.plan", "sidecar": f"{stem}.json"}


def engine_stem(contents: Contents) -> str:
    """Returns ``model``, or ``model.rtx`` for an engine that a server must not find.

    Engines of TensorRT-RTX are loaded by TensorRT-RTX alone, and the servers have TensorRT.
    """
    return "model" if loadable(contents) or contents.engine is None else "model.rtx"


def loadable(contents: Contents) -> bool:
    """Whether there is an engine that a program with TensorRT, not RTX, can load."""
    return contents.engine is not None and contents.engine.sidecar.library == "tensorrt"


def lines(labels: Sequence[str]) -> bytes:
    """Returns one label a line, in UTF-8.

    Raises:
        UsageError: If a label has a line end within.
    """
    refuse_within(labels, "\n", "\r")
    return "".join(f"{label}\n" for label in labels).encode()


def refuse_within(labels: Sequence[str], *signs: str) -> None:
    """Passes silently, or names the label that a server would take for two.

    Raises:
        UsageError: If a label holds one of the signs, which separate labels in the server's file.
    """
    for label in labels:
        if any(sign in label for sign in signs):
            raise UsageError(
                f"the label {label!r} holds {' or '.join(map(repr, signs))}, which separates "
                "labels in this server's file; rename the class in the training data"
            )


def _expected(contents: Contents) -> bytes:
    buffer = io.BytesIO()
    samples = contents.samples
    found = {f"input_{i}": array for i, array in enumerate(samples.inputs)}
    for precision, outputs in samples.outputs.items():
        found |= {f"output_{precision}_{i}": array for i, array in enumerate(outputs)}
    np.savez(buffer, **found)  # type: ignore[arg-type]
    return buffer.getvalue()
