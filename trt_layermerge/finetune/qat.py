"""A network trained with int8's rounding simulated, so that its weights make the best of it.

``RoundedNet`` computes what the Q/DQ model computes: what convolutions, linear layers and residual
additions read is rounded to int8 by the scales of the calibration, and weights by a scale for each
output channel that follows them while they are trained. Rounding is torch's own fake quantisation,
whose gradient is that of no rounding where a value is within range, and zero beyond it.

A rounded layer of the ONNX model is found again in torch by what it computes with: the same weights
(up to a factor per channel, which a folded batch normalisation leaves) and the same inputs on some
images. So neither names nor the order of nodes matter. Two layers that cannot be told apart by that
would have the same scales, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.finetune.evaluate import evaluating
from trt_layermerge.finetune.recipe import FinetuneRecipe

LOWEST, HIGHEST = -128, 127
SMALLEST_NORMAL, SMALLEST_SCALE = 2.0**-14, 2.0**-24
"""Of float16, and what its numbers below the normal ones are multiples of."""

TOLERANCE = 1e-3
"""Largest difference over the largest value at which two tensors count as the same."""

Operator: TypeAlias = Literal["Conv", "Gemm", "Add"]

OPERATORS: dict[Callable[..., Any], Operator] = {
    F.conv2d: "Conv",
    F.linear: "Gemm",
    torch.add: "Add",
    Tensor.add: "Add",
}
"""What is rounded, by the function of torch that does it; ``a + b`` is ``Tensor.add``.

Additions in place are none of them: the rounded sum would not be where others look for it.
"""


@dataclass(frozen=True)
class RoundedLayer:
    """A layer of the quantised ONNX model.

    Attributes:
        name: Its name there.
        operator: What it is.
        inputs: The activations that it reads in float, on the images that are compared.
        weight: Its float weight; None for an addition.
        scales: Step of int8 by position of the input; what has none is not rounded.
    """

    name: str
    operator: Operator
    inputs: tuple[Tensor, ...]
    weight: Tensor | None
    scales: dict[int, float]


@dataclass(frozen=True, slots=True)
class Rounding:
    """What one call of torch rounds: activations by position, and perhaps its weight."""

    scales: dict[int, float]
    weight: bool


class RoundedNet(nn.Module):
    """A network that computes as its Q/DQ model does; the network itself is trained with it.

    Args:
        network: The float network.
        layers: The rounded layers of its ONNX model.
        images: The images ``(N, C, H, W)`` that the layers' inputs belong to.

    Raises:
        UnsupportedModelError: If a layer is not found again in the network.
    """

    def __init__(self, network: nn.Module, layers: Sequence[RoundedLayer], images: Tensor) -> None:
        super().__init__()
        self.network = network
        with evaluating(network), _Watch() as watch:
            network(images)
        self.roundings = match(watch.calls, layers)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the outputs of the rounded network."""
        with _Round(self.roundings):
            outputs: Tensor = self.network(images)
        return outputs


def qat_recipe(epochs: int, seed: int, **changes: Any) -> FinetuneRecipe:
    """Returns how to train: a low learning rate, since the start is all but right."""
    values = {"lr": 2e-4, "weight_decay": 0.0, "warmup_epochs": 0.0, "bn": "freeze", **changes}
    return FinetuneRecipe.from_json(
        {**FinetuneRecipe().to_json(), **values, "epochs": epochs, "seed": seed}
    )


def match(
    calls: Sequence[tuple[Operator, tuple[Tensor, ...]]], layers: Sequence[RoundedLayer]
) -> tuple[Rounding | None, ...]:
    """Returns for every call of torch what it rounds, or None where it is no rounded layer.

    Raises:
        UnsupportedModelError: If a layer has no call; names the first few.
    """
    left = list(layers)
    roundings: list[Rounding | None] = []
    for operator, arguments in calls:
        found = next((layer for layer in left if _same(operator, arguments, layer)), None)
        if found is None:
            roundings.append(None)
        else:
            roundings.append(Rounding(found.scales, found.weight is not None))
            left = [layer for layer in left if layer is not found]
    if left:
        raise UnsupportedModelError(
            f"{len(left)} of {len(layers)} int8 layers are not found again in the torch network "
            f"({', '.join(layer.name for layer in left[:3])}), so it cannot be trained with their "
            "rounding; set calibrate.qat_epochs=0"
        )
    return tuple(roundings)


class _Calls(TorchFunctionMode):
    """Goes between a network and torch, and sees every call of a function that is rounded."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operator = OPERATORS.get(func)
        tensors = all(isinstance(argument, Tensor) for argument in args[:2])
        if operator is not None and len(args) > 1 and tensors:
            args = self.seen(operator, args)
        return func(*args, **(kwargs or {}))

    def seen(self, operator: Operator, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns the arguments to call with."""
        raise NotImplementedError


class _Watch(_Calls):
    """Remembers operator, activations and weight of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Operator, tuple[Tensor, ...]]] = []

    def seen(self, operator: Operator, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        self.calls.append((operator, tuple(t.detach().clone() for t in arguments[:2])))
        return arguments


class _Round(_Calls):
    """Rounds what the calls read, each as it was matched."""

    def __init__(self, roundings: Sequence[Rounding | None]) -> None:
        super().__init__()
        self._next: Iterator[Rounding | None] = iter(roundings)

    def seen(self, operator: Operator, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        rounding = next(self._next)
        if rounding is None:
            return arguments
        rounded = list(arguments)
        for position, scale in rounding.scales.items():
            rounded[position] = torch.fake_quantize_per_tensor_affine(
                rounded[position], scale, 0, LOWEST, HIGHEST
            )
        if rounding.weight:
            rounded[1] = round_weight(rounded[1])
        return tuple(rounded)


def round_weight(weight: Tensor) -> Tensor:
    """Returns a weight ``(C_out, …)`` rounded to int8 and back, a scale for each output channel.

    The scale is ``max|w| / 127`` in float16, rounded up below its normal range, as in the Q/DQ
    model.
    """
    magnitudes = weight.detach().abs().flatten(1).amax(1)
    exact = magnitudes.double() / HIGHEST
    steps = (exact / SMALLEST_SCALE).ceil() * SMALLEST_SCALE
    scales = torch.where(exact < SMALLEST_NORMAL, steps, (magnitudes / HIGHEST).half()).float()
    zeros = torch.zeros(len(scales), dtype=torch.int32, device=weight.device)
    scales = torch.where(magnitudes == 0, 1.0, scales)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, LOWEST, HIGHEST)


def _same(operator: Operator, arguments: tuple[Tensor, ...], layer: RoundedLayer) -> bool:
    if operator != layer.operator:
        return False
    if layer.weight is not None:
        pairs = [(_directions(arguments[1]), _directions(layer.weight))]
    else:
        pairs = []
    pairs += zip(arguments, layer.inputs, strict=False)
    return all(a.shape == b.shape and _near(a, b) for a, b in pairs)


def _directions(weight: Tensor) -> Tensor:
    """Returns the weights of each output channel over the largest of them, without signs."""
    rows = weight.detach().abs().flatten(1)
    return rows / rows.amax(1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)


def _near(a: Tensor, b: Tensor) -> bool:
    scale = max(float(a.abs().max()), float(b.abs().max()))
    return float((a - b).abs().max()) <= TOLERANCE * scale
