"""A traced network with fewer channels in some of its streams, and which ones these are.

Channels are chosen by backward elimination (``blocks.elimination``) for everything that reads a
stream together: the error of each convolution or linear layer, refitted to what it put out, counts
as a share of its output's variance.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from trt_layermerge.blocks.elimination import Readers, eliminate_together
from trt_layermerge.blocks.layers import zero_pad
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.streams import slim_graph
from trt_layermerge.core.unit import Stream
from trt_layermerge.errors import UsageError
from trt_layermerge.kinds import fit_refusal
from trt_layermerge.merge.leastsq import Moments, sample_positions
from trt_layermerge.merge.segments import record
from trt_layermerge.tracing import TracedNetwork
from trt_layermerge.tracing.conv import conv_spec, is_plain_conv
from trt_layermerge.tracing.forms import PooledConv2d, weight_of

Channels: TypeAlias = Mapping[str, tuple[int, ...]]
"""Channels that remain of streams, by name."""

POSITIONS = 16
"""Positions of an image that a choice is made by, at least."""


def channels_of(traced: TracedNetwork, plan: MergePlan) -> dict[str, tuple[int, ...]]:
    """Returns the channels that remain in a plan's streams, those with the largest weights if free.

    Raises:
        UsageError: If the plan names a stream that there is not, or channels of another number than
            its candidates have.
    """
    streams = {s.name: s for s in traced.graph.streams if s.refusal is None}
    found = {}
    for name, width in plan.widths.items():
        if name not in streams:
            raise UsageError(f"the plan narrows {name}, and this network has no such stream")
        kept = plan.channels.get(name)
        if kept is None:
            kept = tuple(heaviest(traced, streams[name], width).tolist())
        if len(set(kept)) != width or not set(kept) <= set(range(streams[name].channels)):
            raise UsageError(
                f"the plan keeps {len(kept)} channels of the stream {name}, and its candidates "
                f"are made for {width} of {streams[name].channels}"
            )
        found[name] = tuple(sorted(kept))
    return found


def heaviest(traced: TracedNetwork, stream: Stream, width: int) -> Tensor:
    """Returns the channels with the largest weights in what puts them out and what reads them."""
    total = torch.zeros(stream.channels, dtype=torch.float64)
    for names, axis in ((stream.writers, 0), (stream.readers, 1)):
        for name in names:
            weight = _weight(traced.module.get_submodule(name)).double().square()
            if axis == 1 and weight.shape[1] == 1 and stream.channels > 1:
                continue  # depthwise, counted where it writes
            sums = weight.transpose(0, axis).reshape(stream.channels, -1).sum(1).cpu()
            total += sums / sums.sum().clamp_min(1e-30)
    return total.topk(width).indices.sort().values


def slimmed(traced: TracedNetwork, channels: Channels) -> TracedNetwork:
    """Returns the network with these channels of its streams only, changed in place.

    Args:
        traced: The network; its modules get fewer weights.
        channels: What remains of each stream that is narrowed.
    """
    for stream in traced.graph.streams:
        if stream.name not in channels:
            continue
        kept = torch.tensor(channels[stream.name])
        for name in stream.norms:
            _cut(traced.module.get_submodule(name), kept, 0)
        for name in stream.writers:
            _cut(traced.module.get_submodule(name), kept, 0)
        for name in stream.readers:
            module = traced.module.get_submodule(name)
            if not isinstance(module, nn.Conv2d) or module.groups == 1:  # depthwise is cut already
                _cut(module, kept, 1, stream.channels)
    widths = {name: len(kept) for name, kept in channels.items()}
    return replace(traced, graph=slim_graph(traced.graph, widths))


def _cut(module: nn.Module, kept: Tensor, axis: int, channels: int = 0) -> None:
    """Leaves some channels of a module's outputs (axis 0) or inputs (axis 1)."""
    for name, value in [
        *module.named_parameters(recurse=False),
        *module.named_buffers(recurse=False),
    ]:
        if value.ndim <= axis:
            continue
        index = kept.to(value.device)
        if axis == 1 and isinstance(module, nn.Linear):
            taps = module.in_features // channels
            index = (index.unsqueeze(1) * taps + torch.arange(taps).to(index)).flatten()
        part = value.detach().index_select(axis, index)
        if isinstance(value, nn.Parameter):
            setattr(module, name, nn.Parameter(part, value.requires_grad))
        else:
            persistent = name not in module._non_persistent_buffers_set
            module.register_buffer(name, part, persistent)
    _resize(module, len(kept), axis, channels)


def _resize(module: nn.Module, width: int, axis: int, channels: int) -> None:
    """Tells a module how many channels it has now."""
    if isinstance(module, nn.Conv2d):
        if axis == 1:
            module.in_channels = width
            return
        if module.groups > 1:
            module.in_channels = module.groups = width
        module.out_channels = width
    elif isinstance(module, nn.Linear):
        if axis == 1:
            module.in_features = module.in_features // channels * width
        else:
            module.out_features = width
    else:
        setattr(module, "num_features", width)  # noqa: B010 - a normalisation


@torch.no_grad()
def choose_channels(
    traced: TracedNetwork, widths: Mapping[str, Sequence[int]], batches: Iterable[Any]
) -> dict[str, dict[int, tuple[int, ...]]]:
    """Returns the channels that remain at every width of every stream; fewer are among more.

    Args:
        traced: The network, in eval mode.
        widths: Widths by name of the stream, falling.
        batches: Inputs of the network, as often as they are asked for.
    """
    found = {}
    for stream in traced.graph.streams:
        wanted = widths.get(stream.name, ())
        if not wanted:
            continue
        readers = [*_readers(traced, stream, batches)]
        if readers:
            left = eliminate_together(readers, stream.channels, wanted)
        else:  # nothing that can be fitted reads it
            left = (heaviest(traced, stream, width) for width in wanted)
        found[stream.name] = {
            width: tuple(kept.tolist()) for width, kept in zip(wanted, left, strict=True)
        }
    return found


def _readers(traced: TracedNetwork, stream: Stream, batches: Iterable[Any]) -> Iterator[Readers]:
    """Yields the least-squares problem of each layer that reads a stream and mixes its channels."""
    for node in traced.module.graph.find_nodes(op="call_module"):
        name, module = str(node.target), traced.module.get_submodule(str(node.target))
        if name not in stream.readers or not fits_alone(module):
            continue
        names = (node.all_input_nodes[0].name, node.name)
        values = (record(traced.module, batch, names) for batch in batches)
        moments = layer_moments(module, ((v[names[0]], v[names[1]]) for v in values))
        (gram,), (cross,) = moments.system()
        spread = (moments.yy / moments.count - (moments.y / moments.count).square()).sum()
        yield Readers(gram, cross / spread.clamp_min(1e-30).sqrt(), len(gram) // stream.channels)


def fits_alone(module: nn.Module) -> bool:
    """Whether a layer is a dense convolution or linear layer that least squares can fit."""
    dense = is_plain_conv(module) and module.groups == 1 and not isinstance(module, PooledConv2d)
    if not dense and type(module) is not nn.Linear:
        return False
    return fit_refusal(1, _weight(module)[0].numel()) is None


def layer_moments(module: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]]) -> Moments:
    """Returns the moments of what a layer reads and should put out; a linear one has one position.

    Args:
        module: A layer that ``fits_alone``.
        pairs: Both values, batch by batch.
    """
    weight = _weight(module)
    conv = nn.Conv2d(weight.shape[1], len(weight), 1).to(weight)
    conv.weight = nn.Parameter(weight)
    if isinstance(module, nn.Conv2d):
        conv.kernel_size, conv.stride = module.kernel_size, module.stride
        conv.dilation = module.dilation
    moments = Moments(conv)
    generator = torch.Generator().manual_seed(0)
    for inputs, wanted in pairs:
        if isinstance(module, nn.Conv2d):
            inputs = zero_pad(conv_spec(module, tuple(inputs.shape)).padding)(inputs)
        else:
            inputs, wanted = inputs[:, :, None, None], wanted[:, :, None, None]
        moments.add(inputs, wanted, sample_positions(wanted, POSITIONS, generator))
    return moments


class Chosen(nn.Module):
    """Some channels of a value.

    Args:
        kept: Which ones.
    """

    def __init__(self, kept: Sequence[int]) -> None:
        super().__init__()
        self.kept = list(kept)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, C, ...)`` to ``(N, kept, ...)``."""
        return x[:, self.kept]


def _weight(module: nn.Module) -> Tensor:
    """Returns the weight of a layer as a convolution's."""
    if isinstance(module, nn.Linear):
        return module.weight.detach()[:, :, None, None]
    assert isinstance(module, nn.Conv2d)
    return weight_of(module).detach()
