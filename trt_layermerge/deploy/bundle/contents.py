"""What goes into a bundle, whatever it is for: plain data without paths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from numpy.typing import NDArray

from trt_layermerge.core.codec import Finite
from trt_layermerge.core.device import Precision
from trt_layermerge.core.outputs import Kind
from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.deploy.sidecar import Sidecar
from trt_layermerge.errors import UsageError

Target: TypeAlias = Literal["plain", "triton", "deepstream", "isaac-ros"]
TARGETS: tuple[Target, ...] = get_args(Target)

NumberType: TypeAlias = Literal["float32", "int64", "int32", "bool"]
Arrays: TypeAlias = tuple[NDArray[Any], ...]

Files: TypeAlias = dict[str, bytes]
"""Content by path relative to the bundle, with forward slashes."""

TOLERANCES: Mapping[Precision, float] = {"fp32": 1e-3, "fp16": 1e-2, "int8": 0.2}
"""Largest difference over the largest value of an expected output that ``verify.py`` lets pass.

The expected outputs are those of the same graph in ONNX Runtime: what is left is the order of
summation and the rounding in between. At int8, where a sum that is a little different falls on
another step, a float16 fallback moved logits by up to 0.11 and probabilities by up to 0.15
(``benchmarks/bm_tolerances.py``). Never compared with a GPU.
"""


@dataclass(frozen=True)
class Baked:
    """What of the work before and behind the network is part of its graph.

    Attributes:
        normalise: The first input is pixels from 0 to 255, not yet normalised.
        softmax: The output is probabilities, not logits.
    """

    normalise: bool = False
    softmax: bool = False

    def __bool__(self) -> bool:
        return self.normalise or self.softmax


@dataclass(frozen=True)
class Port:
    """A tensor that goes into the network or comes out of it.

    Attributes:
        name: Its name.
        shape: Its shape for one image: without the batch, which is its first dimension.
        kind: What it is: ``image`` or ``numbers`` of inputs, ``core.outputs`` of outputs.
        type: Of its numbers.
    """

    name: str
    shape: tuple[int, ...]
    kind: Literal["image", "numbers"] | Kind
    type: NumberType = "float32"


@dataclass(frozen=True)
class Interface:
    """What goes into the network and comes out.

    Attributes:
        inputs: The inputs; the first one is an image ``(C, H, W)``.
        outputs: The outputs.
        batch: Images per run; the usual number where any up to ``max_batch`` may be given.
        max_batch: Most images per run, or None where it is always ``batch``.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    batch: int
    max_batch: int | None = None

    @property
    def image(self) -> tuple[int, ...]:
        """``(C, H, W)`` of the first input."""
        return self.inputs[0].shape

    @property
    def classifies(self) -> bool:
        """Whether all that comes out are the classes of an image."""
        (output, *more) = self.outputs
        return not more and output.kind == "classes" and len(output.shape) == 1

    @property
    def pixels(self) -> str:
        """What an image is, in words."""
        channels = self.image[0]
        return {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")

    @property
    def limit(self) -> int:
        """Most images per run."""
        return self.max_batch or self.batch


@dataclass(frozen=True)
class Engine:
    """A serialised engine with what is known of it."""

    plan: bytes = field(repr=False)
    sidecar: Sidecar


@dataclass(frozen=True)
class Samples:
    """Two inputs, and what the network makes of them in ONNX Runtime.

    Attributes:
        inputs: Every input ``(2, ...)``, as the network takes them.
        outputs: Every output ``(2, ...)``, by precision.
        source: Where the inputs are from, in words.
    """

    inputs: Arrays
    outputs: Mapping[Precision, Arrays]
    source: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a bundled network, and stands in its manifest.

    Attributes:
        name: What servers call it.
        precision: What is deployed.
        why_no_engine: The reason where there is no engine.
        interface: Inputs and outputs.
        baked: What else the graphs do.
        preprocess: From 8-bit pixels to what the network was trained on.
        labels: Class names in the order of the outputs, or None if they are not known.
        build: Library (``engine``) and options to build the engine with, JSON-ready.
        weights_sha256: Hash of the merged weights.
        seed: Seed of the run.
        accuracy: Share of right classes on the test images: of ``original`` in torch, and of the
            merged network by precision in ONNX Runtime; what was not measured is left out.
        latency: By precision: ``original_ms``, ``merged_ms``, ``speedup`` and the ``device``.
    """

    name: str
    precision: Precision
    why_no_engine: str | None
    interface: Interface
    baked: Baked
    preprocess: Preprocess
    labels: tuple[str, ...] | None
    build: Mapping[str, Any]
    weights_sha256: str
    seed: int
    accuracy: Mapping[str, Finite] = field(default_factory=dict)
    latency: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Contents(Facts):
    """A merged network, ready to be bundled for any target.

    Attributes:
        models: ONNX by precision, exactly the bytes that engines are built from; fp32 always.
        portable: The int8 ONNX that ONNX Runtime runs on a CPU, whose fallback is float32.
        engine: The engine at ``precision``, or None.
        samples: To see whether it computes the right thing.
        recipe: Text of the recipe.
        calibration: Text of ``calibration.json``, or None without int8.
    """

    models: Mapping[Precision, bytes] = field(repr=False)
    portable: bytes | None = field(repr=False)
    engine: Engine | None
    samples: Samples
    recipe: str
    calibration: str | None = None

    def __post_init__(self) -> None:
        """Refuses a name that is no plain file name, and a precision without a model."""
        if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name) is None:
            raise UsageError(f"{self.name!r} cannot be the name of a model; use letters and digits")
        if self.precision not in self.models:
            raise UsageError(
                f"there is no {self.precision} network, only {', '.join(self.models)}; choose one "
                "of these (--precision), or name it in build.precisions and run again"
            )

    @property
    def runnable(self) -> bytes:
        """The deployed network as ONNX Runtime runs it on a CPU."""
        portable = self.portable if self.precision == "int8" else None
        return portable or self.models[self.precision]
