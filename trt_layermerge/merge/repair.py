"""Closed-form repair: blocks are fitted to the original network's values, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trt_layermerge.core.candidate import CandidateKey
from trt_layermerge.errors import UsageError
from trt_layermerge.merge.block import FittedBlock, RelaxedBlock, block_key, block_ports
from trt_layermerge.merge.layers import ConvNorm, kernel_of
from trt_layermerge.merge.leastsq import Moments, Solution, sample_positions
from trt_layermerge.merge.relax import RelaxedNet, retrace
from trt_layermerge.merge.surgery import block_path, truncated

REPAIRS = ("none", "bn", "ls-zero", "ls-identity", "ls-variance")
DEFAULT = "ls-zero"

WEAK_RIDGE, STRONG_RIDGE = 1e-6, 1e-1
POSITIONS = 16
EQUATIONS_PER_UNKNOWN = 5
CHUNK_IMAGES = 64


@dataclass(frozen=True)
class Pairs:
    """What reaches a block and what it should put out, batch by batch.

    Attributes:
        images: Number of images in all.
        batches: Returns ``(N, C_in, H, W)`` and ``(N, C_out, H', W')`` of every batch, anew.
    """

    images: int
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]


@torch.no_grad()
def repair(
    relaxed: RelaxedNet,
    model: nn.Module,
    calibration_batches: Iterable[Any],
    methods: Mapping[CandidateKey, str] | None = None,
) -> None:
    """Fits the changed blocks in place, each behind the already fitted ones before it.

    The targets are the values of the original network at the same place. Blocks without
    parameters are left as they are.

    Args:
        relaxed: What to fit.
        model: The original network; left untouched.
        calibration_batches: Images ``(N, C, H, W)``, or tuples that begin with them. They are
            kept in memory and used several times.
        methods: By ``Candidate.key``, one of ``REPAIRS``; ``ls-zero`` for what is not in it.

    Raises:
        UsageError: If there are no images, a method is unknown, or the model is another one.
    """
    like = next(relaxed.parameters())
    batches = [_images(b).to(like.device, like.dtype) for b in calibration_batches]
    if not batches:
        raise UsageError("repair needs calibration images and got none; pass at least one batch")
    images = sum(len(b) for b in batches)
    traced = retrace(model, relaxed.graph)
    training = relaxed.training
    relaxed.eval()
    for candidate in relaxed.plan.changed:
        method = (methods or {}).get(candidate.key, DEFAULT)
        (call,) = relaxed.net.graph.find_nodes(op="call_module", target=block_path(candidate.block))
        before = truncated(relaxed.net, call.all_input_nodes[0].name)
        original = truncated(traced.module, block_ports(traced, candidate).target)
        block = relaxed.blocks[block_key(candidate.block)]
        pairs = Pairs(images, partial(_run_both, before, original, batches))
        _fit(block, pairs, method, 0, [])
    relaxed.train(training)


@torch.no_grad()
def repair_block(
    block: RelaxedBlock, inputs: Tensor, targets: Tensor, method: str, seed: int = 0
) -> None:
    """Fits one block in place; a block without parameters is left as it is.

    ``bn`` re-estimates the running statistics of its batch normalisations. The others solve a
    ridge regression for weight and bias of the block's last convolution, given what comes before
    it and what shortcuts add behind it: ``ls-zero`` pulls weakly towards zero, ``ls-identity``
    pulls more strongly towards where the block starts (its own weights, or the identity for a new
    convolution), ``ls-variance`` scales the channels of ``ls-zero`` to the variance of the targets.
    Where a shortcut that computes something follows the last convolution, ``bn`` is done instead.

    Args:
        block: What ``build_block`` made.
        inputs: What reaches it, ``(N, C_in, H, W)``.
        targets: The original values at its target port, ``(N, C_out, H', W')``.
        method: One of ``REPAIRS``.
        seed: Decides the sampled positions.

    Raises:
        UsageError: If the method is unknown.
    """
    parts = [torch.split(t, CHUNK_IMAGES) for t in (inputs, targets)]
    pairs = Pairs(len(inputs), lambda: zip(*parts, strict=True))
    for _ in repair_in_turn(block, pairs, [method], seed):
        pass


@torch.no_grad()
def repair_in_turn(
    block: RelaxedBlock, pairs: Pairs, methods: Sequence[str], seed: int = 0
) -> Iterator[str]:
    """Yields each method once the block is fitted by it, in place and from its first state.

    Moments are gathered once for all least squares. ``pairs`` hold inputs and targets, the rest is
    as in ``repair_block``.
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

    Args:
        module: A network or a block.
        batches: Its inputs, or tuples that begin with them.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    states = [(m, m.training) for m in module.modules()]
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for batch in batches:
        module(_images(batch))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for part, training in states:
        part.training = training


def _fit(block: RelaxedBlock, pairs: Pairs, method: str, seed: int, known: list[Moments]) -> None:
    """Fits a block in place; moments are taken from ``known``, or gathered and left there."""
    if method not in REPAIRS:
        raise UsageError(f"unknown repair {method!r}; choose one of {', '.join(REPAIRS)}")
    last = block.last
    if method == "none":
        return
    if method == "bn" or last is None:
        if any(isinstance(m, _BatchNorm) for m in block.modules()):
            reestimate_bn(block, (inputs for inputs, _ in pairs.batches()))
        return
    if not known:
        known.append(gather(block, last, pairs, seed))
    moments = known[0]
    if method == "ls-identity":
        solution = moments.solve(STRONG_RIDGE, _start(block, last))
    else:
        solution = moments.solve(WEAK_RIDGE, rescale=method == "ls-variance")
    install(last, solution)


def gather(block: RelaxedBlock, last: ConvNorm, pairs: Pairs, seed: int) -> Moments:
    """Returns the moments of the last convolution's inputs and wanted outputs.

    Its target is the block's target minus what shortcuts add behind it. 16 positions an image
    are drawn, borders included, or all where that gives fewer than 5 equations per unknown.
    """
    moments = Moments(last.conv)
    enough = pairs.images * POSITIONS >= EQUATIONS_PER_UNKNOWN * (moments.size + 1)
    generator = torch.Generator().manual_seed(seed)
    for inputs, targets in pairs.batches():
        seen, produced, output = _observe(block, last, inputs)
        positions = sample_positions(targets, POSITIONS if enough else None, generator)
        moments.add(seen, targets - (output - produced), positions)
    return moments


def install(last: ConvNorm, solution: Solution) -> None:
    """Puts a fitted convolution in place; in eval mode the unit computes exactly it.

    The batch normalisation behind it gets the output's own mean and variance as statistics, and
    scale √(σ² + ε) and shift μ + b that undo them.
    """
    conv, norm = last.conv, last.norm
    conv.weight.copy_(solution.weight)
    if norm is None:
        assert conv.bias is not None  # layers.conv_norm_copy gives one
        conv.bias.copy_(solution.bias)
        return
    if conv.bias is not None:
        conv.bias.zero_()
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(solution.mean)
    norm.running_var.copy_(solution.variance)
    norm.weight.copy_((solution.variance + norm.eps).sqrt())
    norm.bias.copy_(solution.mean + solution.bias)


def _run_both(
    before: nn.Module, original: nn.Module, batches: Iterable[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields what reaches a block, and the original's value at its target."""
    for images in batches:
        yield before(images), original(images)


def _observe(block: RelaxedBlock, last: ConvNorm, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns input and output of the last convolution with its BN, and output of the block."""
    seen: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.extend((args[0], output))

    handle = last.register_forward_hook(note)
    try:
        output = block(inputs)
    finally:
        handle.remove()
    return seen[0], seen[1], output


def _start(block: RelaxedBlock, last: ConvNorm) -> Tensor:
    """Returns the weights that ``ls-identity`` pulls to."""
    if not isinstance(block, FittedBlock):
        return kernel_of(last).weight
    conv, spec = last.conv, block.candidate.convs[-1]
    start = torch.zeros_like(conv.weight, dtype=torch.float64)
    tap = (spec.padding[0] // spec.dilation[0], spec.padding[1] // spec.dilation[1])
    fits = all(p % d == 0 for p, d in zip(spec.padding, spec.dilation * 2, strict=True))
    inside = tap[0] < spec.kernel[0] and tap[1] < spec.kernel[1]
    if (
        len(block.candidate.convs) == 1
        and spec.in_channels == spec.out_channels
        and fits
        and inside
    ):
        channels = torch.arange(spec.out_channels)
        start[channels, channels % start.shape[1], tap[0], tap[1]] = 1.0
    return start


def _images(batch: Any) -> Tensor:
    images = batch if isinstance(batch, Tensor) else batch[0]
    assert isinstance(images, Tensor)
    return images
