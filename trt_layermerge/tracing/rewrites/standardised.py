"""Convolutions whose weight is standardised in every call get that weight for good.

With the fan-in F = C_in / groups · kh · kw, and mean μ[o] and biased variance σ²[o] of the F
numbers W[o] of an output channel,

    W'[o] = g[o] · (W[o] − μ[o]) / √(σ²[o] + ε)

where g = 1 (weight standardisation: Qiao et al., arXiv 1903.10520), or g = gain · scale (scaled
weight standardisation, Brock et al., arXiv 2101.08692, scale = γ / √F).
"""

from __future__ import annotations

from importlib import import_module

import torch
from torch import nn

from trt_layermerge.tracing.prepare import has_hooks
from trt_layermerge.tracing.reading import Reading

_SCALED = {
    "StdConv2d": False,
    "StdConv2dSame": False,
    "ScaledStdConv2d": True,
    "ScaledStdConv2dSame": True,
}
"""Classes of timm, told by name so that timm need not be installed, and whether g is learned."""


def standardise(reading: Reading) -> None:
    """Bakes standardised weights, in place: float64, cast once. Names of weights stay.

    Where it is used in more than one place, or has hooks, a convolution stays as it is.
    """
    for node in reading.order:
        module = reading.module(node)
        if (
            isinstance(module, nn.Conv2d)
            and type(module).__module__.startswith("timm.")
            and type(module).__name__ in _SCALED
            and "forward" not in vars(module)
            and not has_hooks(module)
            and reading.shared(module) is None
        ):
            _bake(module)


@torch.no_grad()
def _bake(conv: nn.Conv2d) -> None:
    weight, gain, known = conv.weight.double(), torch.ones(()).double(), vars(conv)
    if _SCALED[type(conv).__name__]:
        gain = conv.get_parameter("gain").double() * known["scale"]
        del conv.gain
    rows = weight.flatten(1)
    variance, mean = torch.var_mean(rows, dim=1, correction=0, keepdim=True)
    standard = ((rows - mean) / (variance + known["eps"]).sqrt()).reshape(weight.shape)
    baked = (gain.to(weight) * standard).to(conv.weight)
    conv.weight = nn.Parameter(baked, conv.weight.requires_grad)
    same = known.get("same_pad", False)
    conv.__class__ = import_module("timm.layers").Conv2dSame if same else nn.Conv2d
