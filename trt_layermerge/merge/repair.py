"""Closed-form repair: blocks are fitted to the original network's values, one after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trt_layermerge.blocks import ConvNorm, RelaxedBlock
from trt_layermerge.core.candidate import CandidateKey
from trt_layermerge.core.inputs import mapped, parse
from trt_layermerge.errors import UsageError
from trt_layermerge.kinds import LEAST_SQUARES, fittable
from trt_layermerge.merge.leastsq import Moments, sample_positions
from trt_layermerge.merge.relax import RelaxedNet, retrace
from trt_layermerge.merge.segments import Walk
from trt_layermerge.merge.slim import fits_alone, layer_moments
from trt_layermerge.merge.surgery import (
    Ports,
    block_key,
    block_path,
    block_ports,
    inputs_of,
)
from trt_layermerge.tracing import TracedNetwork

REPAIRS = ("none", "bn", *LEAST_SQUARES)
"""What every block can be repaired by; some have fits of their own besides (``kinds``)."""

WEAK_RIDGE, STRONG_RIDGE = 1e-6, 1e-1
POSITIONS = 16
EQUATIONS_PER_UNKNOWN = 5


Targets: TypeAlias = Callable[[str], Iterable[Tensor]]
"""Name of a value of the original network → that value of every batch."""


@dataclass(frozen=True)
class Pairs:
    """What reaches a block and what it should put out, batch by batch.

    Attributes:
        images: Number of images in all.
        batches: Returns ``(N, C_in, H, W)`` and ``(N, C_out, H', W')`` of every batch, anew.
        shared: Moments that several candidates need, by the key that they give them.
    """

    images: int
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    shared: dict[Hashable, Moments] = field(default_factory=dict)


@torch.no_grad()
def repair(
    relaxed: RelaxedNet,
    model: nn.Module | TracedNetwork,
    calibration_batches: Iterable[Any],
    methods: Mapping[CandidateKey, str] | None = None,
    targets: Targets | None = None,
) -> None:
    """Fits the changed blocks in place, each behind the already fitted ones before it.

    The targets are the values of the original network at the same place. Blocks without
    parameters are left as they are.

    Args:
        relaxed: What to fit.
        model: The original network, or what ``retrace`` returned for it; left untouched.
        calibration_batches: Images ``(N, C, H, W)``, or tuples that begin with them; for a network
            of several inputs, tuples or dicts of them (``core.inputs.parse``). They are kept in
            memory and used several times.
        methods: By ``Candidate.key``, see ``repair_in_turn``; for what is not in it the block's
            own fit, else ``ls-zero``, and ``bn`` where no last convolution can be fitted.
        targets: Gives the original's values by name, batch by batch, where somebody has them; by
            default the model is run.

    Raises:
        UsageError: If there are no images, a method is unknown, or the model is another one.
        UnsupportedModelError: If least squares are asked for where they would take more memory
            than ``kinds.limits.FIT_BYTES``.
    """
    like = next(relaxed.parameters())
    names = inputs_of(relaxed.net)

    def placed(part: Tensor) -> Tensor:
        return part.to(like.device, like.dtype if part.is_floating_point() else part.dtype)

    batches = [mapped(placed, _inputs(b, names)) for b in calibration_batches]
    if not batches:
        raise UsageError("repair needs calibration images and got none; pass at least one batch")
    images = sum(len(b) for b in batches)
    traced = retrace(model, relaxed.graph)
    training = relaxed.training
    mine = Walk(relaxed.eval().net, batches)
    target_of = targets or Walk(traced.module, batches).at
    kept = relaxed.plan.channels
    for candidate in relaxed.plan.changed:
        block = relaxed.blocks[block_key(candidate.block)]
        squares = "ls-variance" if candidate.widths else "ls-zero"
        usual = (*block.fits, squares if fittable(block) else "bn")[0]
        method = (methods or {}).get(candidate.key, usual)
        nothing_to_fit = next(block.parameters(), None) is None
        if method == "none" or (method in REPAIRS and nothing_to_fit):
            continue
        (call,) = relaxed.net.graph.find_nodes(op="call_module", target=block_path(candidate.block))
        inputs = [*mine.at(call.all_input_nodes[0].name)]
        ports = block_ports(traced, candidate)
        stream = traced.graph.written_streams.get(traced.graph.units[candidate.block.end - 1].name)
        if stream is not None and stream.name in kept:
            wanted = _of_stream(mine, target_of, ports, call.name, kept[stream.name])
        else:
            wanted = [*target_of(ports.target)]
        pairs = Pairs(images, partial(zip, inputs, wanted, strict=True))
        _fit(block, pairs, method, 0, [])
    if kept:
        _fit_layers(relaxed, traced, mine, target_of)
    relaxed.train(training)


def _of_stream(
    mine: Walk, target_of: Targets, ports: Ports, call: str, kept: Sequence[int]
) -> list[Tensor]:
    """Returns what a block should put out into a narrower stream, batch by batch.

    Where it is added to what else flows there, the sum is to be right: what the narrower stream has
    lost before is made up for.
    """
    if ports.target == ports.total:
        return [value[:, kept] for value in target_of(ports.total)]
    branches, sums = [*mine.at(call)], [*mine.at(ports.total)]
    wanted = zip(target_of(ports.total), sums, branches, strict=True)
    return [total[:, kept] - (found - branch) for total, found, branch in wanted]


def _fit_layers(relaxed: RelaxedNet, traced: TracedNetwork, mine: Walk, target_of: Targets) -> None:
    """Fits the linear layers that read narrower streams, in place."""
    kept = relaxed.plan.channels
    for node in relaxed.net.graph.find_nodes(op="call_module"):
        stream = traced.graph.read_streams.get(str(node.target))
        layer = relaxed.net.get_submodule(str(node.target))
        if stream is None or stream.name not in kept or type(layer) is not nn.Linear:
            continue
        if layer.bias is None or not fits_alone(layer):
            continue
        pairs = zip(mine.at(node.all_input_nodes[0].name), target_of(node.name), strict=True)
        solution = layer_moments(layer, pairs).solve(WEAK_RIDGE)
        layer.weight.copy_(solution.weight.flatten(1))
        layer.bias.copy_(solution.bias)


@torch.no_grad()
def repair_in_turn(
    block: RelaxedBlock, pairs: Pairs, methods: Sequence[str], seed: int = 0
) -> Iterator[str]:
    """Yields each method once the block is fitted by it, in place and from its first state.

    ``none`` leaves it as it is. ``bn`` re-estimates the running statistics of its batch
    normalisations. The others solve a ridge regression for weight and bias of the block's last
    convolution, given what comes before it and what shortcuts add behind it: ``ls-zero`` pulls
    weakly towards zero, ``ls-identity`` pulls more strongly towards where the block starts
    (``RelaxedBlock.prior``), ``ls-variance`` scales the channels of ``ls-zero`` to the variance of
    the targets. Where a shortcut that computes something follows the last convolution, ``bn`` is
    done instead; a block without parameters is left as it is. Moments are gathered once. A block's
    own ``fits`` gather what they need.

    Args:
        block: What ``build_block`` made.
        pairs: What reaches it, and the original values at its target port.
        methods: Each one of ``REPAIRS``, or of the block's own ``fits``.
        seed: Decides the sampled positions.

    Raises:
        UsageError: If a method is unknown.
        UnsupportedModelError: If the last convolution is too large to be fitted.
    """
    start = {name: value.clone() for name, value in block.state_dict().items()}
    moments: list[Moments] = []
    for method in methods:
        block.load_state_dict(start)
        _fit(block, pairs, method, seed, moments)
        yield method


@torch.no_grad()
def reestimate_bn(module: nn.Module, batches: Iterable[Any]) -> None:
    """Replaces all running statistics by the averages over these batches, in place.

    Those of a normalisation that never sees more than one value a channel stay: it has no variance.

    Args:
        module: A network or a block.
        batches: Its inputs, or tuples that begin with them.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    states = [(m, m.training) for m in module.modules()]
    momenta = [norm.momentum for norm in norms]
    begun: set[nn.Module] = set()

    def look(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        several = inputs[0].numel() > inputs[0].shape[1]
        if several and norm not in begun:
            begun.add(norm)
            norm.reset_running_stats()
            norm.momentum = None
        norm.train(several)

    hooks = [norm.register_forward_pre_hook(look) for norm in norms]
    module.eval()
    for batch in batches:
        module(_images(batch))
    for norm, momentum, hook in zip(norms, momenta, hooks, strict=True):
        norm.momentum = momentum
        hook.remove()
    for part, training in states:
        part.training = training


def _fit(block: RelaxedBlock, pairs: Pairs, method: str, seed: int, known: list[Moments]) -> None:
    """Fits a block in place; moments are taken from ``known``, or gathered and left there."""
    if method not in (names := (*REPAIRS, *block.fits)):
        raise UsageError(f"unknown repair {method!r}; choose one of {', '.join(names)}")
    gather, last = partial(_gather, pairs, seed), block.last
    if method == "none":
        return
    if method == "bn" or last is None:
        if any(isinstance(m, _BatchNorm) for m in block.modules()):
            reestimate_bn(block, (inputs for inputs, _ in pairs.batches()))
        return
    if method in block.fits:
        block.fit(method, gather)
        return
    if not known:
        known.append(gather(block, last))
    moments = known[0]
    if method == "ls-identity":
        solution = moments.solve(STRONG_RIDGE, block.prior())
    else:
        solution = moments.solve(WEAK_RIDGE, rescale=method == "ls-variance")
    last.install(solution.weight, solution.bias, solution.mean, solution.variance)


def _gather(
    pairs: Pairs,
    seed: int,
    module: nn.Module,
    conv: ConvNorm,
    own: bool = False,
    key: Hashable = None,
) -> Moments:
    """Returns the moments of a convolution's inputs and wanted outputs (``blocks.Gather``).

    Its target is the block's target minus what shortcuts add behind it. 16 positions an image
    are drawn, borders included, or as many more as make 5 equations per unknown. Those of a key
    are drawn alike for every candidate.
    """
    if key in pairs.shared:
        return pairs.shared[key]
    moments = Moments(conv.conv)
    needed = math.ceil(EQUATIONS_PER_UNKNOWN * (moments.size + 1) / pairs.images)
    generator = torch.Generator().manual_seed(seed if key is None else 0)
    for inputs, targets in pairs.batches():
        seen, produced, output = _observe(module, conv, inputs)
        wanted = produced if own else targets - (output - produced)
        positions = sample_positions(wanted, max(POSITIONS, needed), generator)
        moments.add(seen, wanted, positions)
    if key is not None:
        pairs.shared[key] = moments
    return moments


def _observe(module: nn.Module, conv: ConvNorm, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns input and output of a convolution with its BN, and output of what it is in."""
    seen: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.extend((args[0], output))

    handle = conv.register_forward_hook(note)
    try:
        output = module(inputs)
    finally:
        handle.remove()
    return seen[0], seen[1], output


def _inputs(batch: Any, names: Sequence[str]) -> Any:
    """Returns the inputs in a batch."""
    return _images(batch) if len(names) == 1 else parse(batch, names)[0]


def _images(batch: Any) -> Tensor:
    images = batch if isinstance(batch, Tensor) else batch[0]
    assert isinstance(images, Tensor)
    return images
