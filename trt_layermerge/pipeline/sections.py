"""The sections of a recipe that name things: network, images, gates and bundles."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from trt_layermerge.core.jsonio import Json
from trt_layermerge.core.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from trt_layermerge.data.images import Framing, Interpolation
from trt_layermerge.session.settings import Count, Fraction, Positive, Section, Supported

if TYPE_CHECKING:
    from torch import Tensor, nn

MOST_VALUES = 2**28
"""Values of one input: a gibibyte in single precision."""


class InputSection(Section):
    """An input of a network that takes several.

    Attributes:
        shape: Its shape, ``[N, ...]``.
        type: Of its numbers.
    """

    shape: tuple[Count, ...]
    type: Literal["float32", "int64", "int32"] = "float32"


class ModelSection(Section):
    """Which network.

    Attributes:
        name: ``timm:NAME``, ``torchvision:NAME``, ``PACKAGE.MODULE:FACTORY``,
            ``FILE.py:FACTORY`` or ``FILE.onnx``, which brings its weights.
        weights: A safetensors file, a checkpoint that loads with ``weights_only=True``, or
            ``pretrained``: the library's own, fetched if they are not cached; None for random.
        input: Shape of the input, ``[N, C, H, W]``.
        outputs: Names of tensors that an ONNX file is cut at, and which become its outputs; none
            for the file's own.
        more_inputs: Shape and type of each input after the first, where there are any.
    """

    name: str
    weights: str | None = None
    input: tuple[Count, Count, Count, Count] = (1, 3, 224, 224)
    outputs: tuple[str, ...] = ()
    more_inputs: tuple[InputSection, ...] = ()

    def example(self, batch: int) -> tuple[Tensor, ...]:
        """Returns inputs of zeros with a number of rows."""
        import torch

        first = torch.zeros(batch, *self.input[1:])
        return first, *(
            torch.zeros(batch, *more.shape[1:], dtype=getattr(torch, more.type))
            for more in self.more_inputs
        )

    @model_validator(mode="after")
    def _fits_memory(self) -> ModelSection:
        if (count := prod(self.input)) > MOST_VALUES:
            raise ValueError(
                f"an input of {'x'.join(map(str, self.input))} has {count:.2g} values, and "
                f"{MOST_VALUES:,} at most can be worked with; type a smaller one (--input)"
            )
        return self

    def build(self, tell: Callable[[str], object]) -> nn.Module:
        """Returns the network itself, in eval mode. Raises what ``load_network`` raises.

        Args:
            tell: Told what a user must know of its weights.
        """
        from trt_layermerge.models.networks import load_network

        return load_network(self.name, self.weights, self.input, self.outputs, tell)

    def identity(self) -> Json:
        """Returns what tells this network from another: its name, and hashes of its files."""
        from trt_layermerge.models.networks import network_inputs

        found = network_inputs(self.name, self.weights, self.input, self.outputs)
        more = [section.model_dump(mode="json") for section in self.more_inputs]
        return {**found, "more_inputs": more} if more else found


class PreprocessSection(Section):
    """``y = (x · scale − mean) / std`` on 8-bit RGB, after images of folders got one size.

    Attributes:
        scale: Factor of the bytes.
        mean: Subtracted, per channel.
        std: Divides, per channel.
        assumed: Whether mean and std are ImageNet's because nothing says what the network was
            trained with.
        crop_pct: Share of a resized image that is kept, in each direction; its centre.
        interpolation: How images are resized.
    """

    scale: float = 1 / 255
    mean: Annotated[tuple[float, ...], Field(min_length=1)] = IMAGENET_MEAN
    std: Annotated[tuple[Positive, ...], Field(min_length=1)] = IMAGENET_STD
    assumed: bool = False
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 1.0
    interpolation: Interpolation = "bilinear"

    @model_validator(mode="after")
    def _tells_pixels_apart(self) -> PreprocessSection:
        with np.errstate(all="ignore"):
            pixels = [[[[level] * len(self.mean)]] for level in (0, 255)]
            dark, light = self.build()(np.array(pixels, np.uint8))
        if not (np.isfinite(dark).all() and np.isfinite(light).all() and (dark != light).all()):
            raise ValueError(
                "black and white pixels do not become two different finite numbers in every "
                "channel: (x · scale − mean) / std; give scale, mean and std as in the training"
            )
        return self

    def build(self) -> Preprocess:
        """Returns the preprocessing itself."""
        return Preprocess(self.scale, self.mean, self.std)

    def framing(self, rows: int, columns: int) -> Framing:
        """Returns how images of any size become inputs of that size."""
        return Framing((rows, columns), self.crop_pct, self.interpolation)


class DataSection(Section):
    """Which images, each by a name such as ``imagefolder:DIR`` (``data.names``).

    Without labels (``images:DIR``, or an npz file of ``images`` alone) the original network is the
    only teacher, and no accuracy is reported.

    Attributes:
        train: Images to fit, score and train on.
        val: Images to choose the plan and settings by; never trained on.
        test: Images for the final accuracy; opened once, at the end.
        metric: ``FILE.py:FUNCTION`` that judges answers and labels beside the accuracy
            (``session.judging``); None for none.
        classes: Text file with the name of every class, a line each, in the order of the network's
            outputs; None for that of the training images.
        preprocess: From pixels to the network's input.
    """

    train: str | None = None
    val: str | None = None
    test: str | None = None
    metric: Annotated[str, Field(pattern=r"\.py:\w+$")] | None = None
    classes: str | None = None
    preprocess: PreprocessSection = PreprocessSection()


class VerifySection(Section):
    """Gates: exceeding one ends with its exit code.

    Attributes:
        max_accuracy_drop: Largest loss of accuracy on ``test``, as a fraction; None for no gate.
        max_metric_drop: Largest loss of ``data.metric`` on ``test``, in its own units.
        min_agreement: Smallest share of the images, from 0 to 1, that must get the answer of the
            original network (``core.agreement``); needs no labels. None for no gate.
        never_slower: Whether a merged network that is slower than the original at the same
            precision, beyond the spread of the rounds, fails.
        max_latency_ms: Most that the merged network may take at the measured precision, in the
            median; None for no gate.
    """

    max_accuracy_drop: Fraction | None = None
    max_metric_drop: Annotated[float, Field(ge=0)] | None = None
    min_agreement: Fraction | None = None
    never_slower: bool = True
    max_latency_ms: Positive | None = None


class PackageSection(Section):
    """What is bundled for deployment.

    Attributes:
        targets: One bundle for each.
        precision: Of the network that is bundled; None for the one that latency is measured at.
        bake_preprocess: Whether normalisation and softmax are part of the graph; None where the
            target needs it, which is DeepStream.
    """

    targets: tuple[Literal["plain", "triton", "deepstream", "isaac-ros"], ...] = ()
    precision: Supported | None = None
    bake_preprocess: bool | None = None
