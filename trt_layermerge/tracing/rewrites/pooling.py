"""Average pooling over a fixed window becomes the depthwise convolution that it is.

With a window of kh × kw, y[c, i] = Σ_t x[c, s·i + t] / (kh·kw): every tap is 1 / (kh·kw), and zeros
of padding count like any other value (``count_include_pad``). Rounding the size up (``ceil_mode``)
changes nothing where no window leaves the map.

Beside a branch, pooling and the convolution W of one tap behind it are one projection,

    W'[o, c, t] = W[o, c] / (kh·kw)      s' = s_pool · s_conv

(the downsampling of ResNet-D), which goes on being computed as pooling and W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.nn import functional

from trt_layermerge.core.conv import Pair
from trt_layermerge.tracing.forms import AveragingConv2d, PooledConv2d
from trt_layermerge.tracing.prepare import has_hooks
from trt_layermerge.tracing.reading import Reading, shape_of
from trt_layermerge.tracing.rewrites.nodes import call_in_place, leave_out, type_of

_NAMES = (
    "input",
    "kernel_size",
    "stride",
    "padding",
    "ceil_mode",
    "count_include_pad",
    "divisor_override",
)


@dataclass(frozen=True)
class _Window:
    kernel: Pair
    stride: Pair
    padding: Pair


def pool_by_convolution(reading: Reading) -> None:
    """Turns average pooling into convolutions, in place; global pooling stays."""
    like = type_of(reading.network)
    for node in reading.order:
        window = _window(reading, node)
        if window is None:
            continue
        source = node.all_input_nodes[0]
        kernel = window.kernel
        pool = AveragingConv2d(
            shape_of(node)[1],
            1 / (kernel[0] * kernel[1]),
            like,
            kernel,
            window.stride,
            window.padding,
        )
        projection = _projection(reading, node)
        if projection is None:
            call_in_place(reading.network, node, pool, source)
        else:
            projection.__class__ = PooledConv2d
            assert isinstance(projection, PooledConv2d)
            projection.pool_first(pool)
            leave_out(node, source)


def _projection(reading: Reading, node: fx.Node) -> nn.Conv2d | None:
    """Returns the convolution of one tap that a pooling leads to beside a branch, or None."""
    users = reading.users(node)
    if len(users) != 1 or len(reading.users(reading.operand(node))) == 1:
        return None
    conv, spec = reading.module(users[0]), reading.convs.get(users[0])
    if type(conv) is not nn.Conv2d or spec is None or not spec.pointwise or any(spec.padding):
        return None
    after = reading.users(users[0])
    if len(after) == 1 and after[0] in reading.norms:
        after = reading.users(after[0])
    return conv if len(after) == 1 and after[0] in reading.additions else None


def _window(reading: Reading, node: fx.Node) -> _Window | None:
    """Returns the window of an average pooling that is a convolution, or None."""
    module = reading.module(node)
    if type(module) is nn.AvgPool2d and not has_hooks(module):
        given = {name: getattr(module, name) for name in _NAMES[1:]}
    elif node.op == "call_function" and node.target is functional.avg_pool2d:
        given = dict(zip(_NAMES, node.args, strict=False)) | node.kwargs
    else:
        return None
    kernel = _pair(given.get("kernel_size"))
    stride = kernel if given.get("stride") in (None, ()) else _pair(given["stride"])
    padding = _pair(given.get("padding", 0))
    if kernel is None or stride is None or padding is None or not node.all_input_nodes:
        return None
    if given.get("divisor_override") is not None:
        return None
    if any(padding) and not given.get("count_include_pad", True):
        return None
    return _fitting(
        _Window(kernel, stride, padding), shape_of(node.all_input_nodes[0]), shape_of(node)
    )


def _fitting(window: _Window, before: tuple[int, ...], after: tuple[int, ...]) -> _Window | None:
    """Returns the window where it never leaves the map, and leaves more than one position."""
    if len(before) != 4 or len(after) != 4 or after[2:] == (1, 1):
        return None
    sizes = tuple(
        (size + 2 * padding - kernel) // stride + 1
        for size, kernel, stride, padding in zip(
            before[2:], window.kernel, window.stride, window.padding, strict=True
        )
    )
    return window if sizes == after[2:] else None


def _pair(value: Any) -> Pair | None:
    """Returns a size for both axes, or None if it is not known while tracing."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, tuple | list) and all(isinstance(part, int) for part in value):
        return (value[0], value[-1]) if value else None
    return None
