"""ONNX operators that normalise as modules of torch."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from trt_layermerge.onnx_reader.converter import Converter, constant, filled, sizes


def batch_norm(converter: Converter, node: Any) -> fx.Node:
    """Converts ``BatchNormalization`` with its statistics."""
    weight, bias, mean, var = (converter.tensor(constant(node, i)) for i in range(1, 5))
    kind = nn.BatchNorm2d if len(node.inputs[0].shape) == 4 else nn.BatchNorm1d
    norm = kind(len(weight), eps=float(node.attrs.get("epsilon", 1e-5)))
    values = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
    return converter.layer(node, filled(norm, **values))


def instance_norm(converter: Converter, node: Any) -> fx.Node:
    """Converts ``InstanceNormalization`` of images, or of groups of channels laid out in rows."""
    weight, bias = (converter.tensor(constant(node, i)) for i in (1, 2))
    kind = nn.InstanceNorm2d if len(sizes(node.inputs[0])) == 4 else nn.InstanceNorm1d
    norm = kind(len(weight), float(node.attrs.get("epsilon", 1e-5)), affine=True)
    return converter.layer(node, filled(norm, weight=weight, bias=bias))


def layer_norm(converter: Converter, node: Any) -> fx.Node:
    """Converts ``LayerNormalization`` over the last axes, with one weight for each of its values.

    Raises:
        ValueError: If its weights are shared.
    """
    known = sizes(node.inputs[0])
    normed = known[int(node.attrs.get("axis", -1)) % len(known) :]
    weight, bias = constant(node, 1), constant(node, 2)
    if tuple(weight.shape) != normed:
        raise ValueError(
            f"it normalises values of shape {normed} with weights of shape {tuple(weight.shape)}, "
            "which torch has no layer for"
        )
    norm = nn.LayerNorm(normed, float(node.attrs.get("epsilon", 1e-5)), bias=bias is not None)
    biases = {} if bias is None else {"bias": converter.tensor(bias)}
    return converter.layer(node, filled(norm, weight=converter.tensor(weight), **biases))


def group_norm(converter: Converter, node: Any) -> fx.Node:
    """Converts ``GroupNormalization``; opset 18 has one weight a group, 21 one a channel."""
    channels, groups = sizes(node.inputs[0])[1], int(node.attrs["num_groups"])
    weight, bias = (converter.tensor(constant(node, i)) for i in (1, 2))
    weight, bias = (v.repeat_interleave(channels // len(v)) for v in (weight, bias))
    norm = nn.GroupNorm(groups, channels, float(node.attrs.get("epsilon", 1e-5)))
    return converter.layer(node, filled(norm, weight=weight, bias=bias))


def local_response_norm(converter: Converter, node: Any) -> fx.Node:
    """Converts ``LRN`` over an odd number of channels. Raises ``ValueError``."""
    size = int(node.attrs["size"])
    if size % 2 == 0:
        raise ValueError(f"it normalises over {size} channels, and torch centres an odd number")
    defaults = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0}
    alpha, beta, bias = (float(node.attrs.get(k, v)) for k, v in defaults.items())
    return converter.layer(node, nn.LocalResponseNorm(size, alpha, beta, bias))
