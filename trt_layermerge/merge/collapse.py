"""Relaxed network → plain network of merged convolutions, equal to it in eval mode."""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from torch import nn

from trt_layermerge.core.candidate import original_candidate
from trt_layermerge.core.geometry import Apply, Close, Open, mergeable
from trt_layermerge.merge.algebra import (
    Kernel,
    add_shortcut,
    compose,
    expand_groups,
    identity_kernel,
)
from trt_layermerge.merge.block import ComposedBlock, FittedBlock, RelaxedBlock, build_block
from trt_layermerge.merge.layers import ConvNorm, conv_of, kernel_of
from trt_layermerge.merge.relax import RelaxedNet
from trt_layermerge.merge.surgery import (
    drop_transparent,
    fold_batch_norms,
    replace_module,
    splice,
    tidy,
)
from trt_layermerge.tracing import TracedNetwork


@torch.no_grad()
def collapse(relaxed: RelaxedNet) -> nn.Module:
    """Returns the merged network in eval mode; the relaxed one is left untouched.

    Every block is one convolution of its candidate's geometry (a fitted chain stays a chain),
    batch normalisations are folded everywhere, and what does nothing in eval mode is gone. Equal
    to the relaxed network in eval mode up to rounding: computed in float64, cast once.
    """
    network = copy.deepcopy(relaxed.net).eval()
    traced = TracedNetwork(network, relaxed.graph)
    for candidate in relaxed.plan.candidates:
        if candidate.original and _fuses(traced, candidate.block.start):
            splice(traced, build_block(traced, candidate))
    for name, block in list(network.named_modules()):
        if isinstance(block, RelaxedBlock):
            replace_module(network, name, collapse_block(block))
    network.graph.eliminate_dead_code()
    fold_batch_norms(network)
    drop_transparent(network)
    tidy(network)
    return network


@torch.no_grad()
def collapse_block(block: RelaxedBlock) -> nn.Module:
    """Returns the merged module of one block, equal to it in eval mode.

    A convolution, with a ``ZeroPad2d`` before it where padding is uneven; a row of them for a
    chain; ``nn.Identity`` where nothing remains.
    """
    if isinstance(block, ComposedBlock):
        kernel = composed_kernel(block)
        if kernel is None:
            return nn.Identity()
        spec = block.candidate.convs[0]
        return conv_of(expand_groups(kernel, spec.groups), spec.padding, next(block.parameters()))
    assert isinstance(block, FittedBlock)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    stages = zip(block.stages, block.bodies(), block.candidate.convs, strict=True)
    for number, (stage, body, spec) in enumerate(stages):
        parts[f"conv{number}"] = conv_of(kernel_of(body), spec.padding, body.conv.weight)
        activation = dict(stage.named_children()).get("activation")
        if activation is not None:
            parts[f"activation{number}"] = copy.deepcopy(activation)
    return parts["conv0"] if len(parts) == 1 else nn.Sequential(parts)


def composed_kernel(block: ComposedBlock) -> Kernel | None:
    """Returns the kernel of kept units and shortcuts, inner residuals first; None for identity."""
    kernel: Kernel | None = None
    begun: list[Kernel | None] = []
    for step in block.steps:
        if isinstance(step, Open):
            begun.append(kernel)
            kernel = None
        elif isinstance(step, Apply):
            kernel = _after(kernel, kernel_of(block.unit(step.unit)))
        else:
            fused = _closed(block, step, kernel)
            kernel = begun.pop() if fused is None else _after(begun.pop(), fused)
    return kernel


def _closed(block: ComposedBlock, step: Close, branch: Kernel | None) -> Kernel | None:
    """Returns a branch with the shortcuts of its residual added; None for an identity alone."""
    modules = block.paths(step.residual)
    if branch is None and len(modules) == 1 and step.residual.shortcuts[0].identity:
        return None
    device = next(block.parameters(), torch.zeros(())).device
    paths = [
        (_path_kernel(module, step.channels, device), offset)
        for module, offset in zip(modules, step.offsets, strict=True)
    ]
    if branch is None:
        paths.sort(key=lambda p: p[0].extent, reverse=True)
        branch = paths.pop(0)[0]
    for path, offset in paths:
        branch = add_shortcut(branch, path, offset)
    return branch


def _path_kernel(module: nn.Module, channels: int, device: torch.device) -> Kernel:
    if isinstance(module, ConvNorm | nn.BatchNorm2d):
        return kernel_of(module)
    return identity_kernel(channels, device)


def _after(first: Kernel | None, second: Kernel) -> Kernel:
    return second if first is None else compose(first, second)


def _fuses(traced: TracedNetwork, index: int) -> bool:
    """Whether an untouched unit has a residual of its own that becomes part of its convolution."""
    own = traced.graph.residuals_inside(index, index + 1)
    return bool(own) and mergeable(traced.graph, original_candidate(traced.graph, index)) is None
