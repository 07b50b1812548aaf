"""Reconstruction: a short, unlabelled training that pulls changed blocks to the original's values.

The error of a block is the mean squared difference at its end, behind addition and activation,
over the variance of the original's values there. ``repair`` minimises in closed form what comes
before the activation, block by block; this goes on from there, as BRECQ (Li et al., 2021) does for
quantised blocks. Batch normalisations use their running statistics throughout and keep them, so
every step changes exactly what is merged later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from trt_layermerge.core.inputs import chunks, mapped, parts_of
from trt_layermerge.errors import DivergedError, UsageError
from trt_layermerge.merge.matching import Place, matched, places
from trt_layermerge.merge.relax import RelaxedNet, retrace
from trt_layermerge.merge.surgery import between, block_key, tapped

Scope: TypeAlias = Literal["each", "blocks", "network"]

CHUNK_IMAGES = 128
WARM_UP = 0.1

OnStep: TypeAlias = Callable[[int, int], None]
"""Told how many of how many steps are done."""


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """How to reconstruct.

    Attributes:
        steps: Steps of Adam; with ``each``, of every block.
        lr: Peak learning rate, reached after a tenth of the steps, lowered along a half cosine.
        batch: Images a step.
        scope: ``each`` trains one block after the other, behind the ones before it; ``blocks`` all
            changed blocks together, by the sum of their errors and that of the output;
            ``network`` all other parameters with them, by the same sum.
        seed: Decides which images a step sees.
    """

    steps: int
    lr: float = 3e-3
    batch: int = 64
    scope: Scope = "network"
    seed: int = 0


def reconstruct(
    relaxed: RelaxedNet,
    model: nn.Module,
    images: Any,
    how: Reconstruction,
    on_step: OnStep | None = None,
) -> None:
    """Trains changed blocks in place, in eval mode, towards the values of the original network.

    Deterministic by seed on one kind of CPU and number of threads.

    Args:
        relaxed: What to train, best repaired before.
        model: The original network; left untouched.
        images: Network inputs ``(N, C, H, W)``, or several (``core.inputs``), without labels.
        how: Steps, learning rate and scope.
        on_step: Called after every step.

    Raises:
        UsageError: If there are no images, the model is another one, or the error is no number.
    """
    if len(images) == 0:
        raise UsageError("reconstruction needs images and got none; give at least one batch")
    images, training = _placed(images, relaxed), relaxed.training
    # With weights laid out by pixel, depthwise convolutions train in half the time on a CPU.
    relaxed.eval().to(memory_format=torch.channels_last)
    if how.scope == "each":
        _each(relaxed, model, images, how, on_step)
    else:
        _together(relaxed, model, images, how, on_step)
    relaxed.train(training).to(memory_format=torch.contiguous_format)


@torch.no_grad()
def match_error(relaxed: RelaxedNet, model: nn.Module, images: Any) -> float:
    """Returns the mean, over output and changed blocks' ends, of their error on some images.

    Args:
        relaxed: What is judged; put into eval mode.
        model: The original network; left untouched.
        images: ``(N, C, H, W)``, or several inputs.

    Raises:
        UsageError: If the model is another one.
    """
    images = _placed(images, relaxed)
    mine, theirs = (_values(net, images) for net in matched(relaxed.eval(), model))
    errors = [_error(m, t, _spread(t)) for m, t in zip(mine, theirs, strict=True)]
    return float(torch.stack(errors).mean())


def _together(
    relaxed: RelaxedNet,
    model: nn.Module,
    images: Any,
    how: Reconstruction,
    on_step: OnStep | None,
) -> None:
    mine, theirs = matched(relaxed, model)
    targets = _values(theirs, images)
    spreads = [_spread(t) for t in targets]

    def loss(chosen: Tensor) -> Tensor:
        values = zip(mine(*parts_of(images[chosen])), targets, spreads, strict=True)
        return torch.stack([_error(m, t[chosen], spread) for m, t, spread in values]).sum()

    owners = relaxed.blocks.values() if how.scope == "blocks" else [relaxed]
    parameters = [p for owner in owners for p in owner.parameters()]
    if parameters and how.steps:
        with _only(relaxed, parameters):
            _descend(
                parameters, loss, len(images), how, lambda done: _tell(on_step, done, how.steps)
            )


def _each(
    relaxed: RelaxedNet,
    model: nn.Module,
    images: Any,
    how: Reconstruction,
    on_step: OnStep | None,
) -> None:
    traced = retrace(model, relaxed.graph)
    ends = [p for p in places(relaxed, traced) if _parameters(relaxed, p)]
    for number, place in enumerate(ends):
        part, reads = between(relaxed.net, place.call, place.mine)
        inputs = _values(tapped(relaxed.net, reads), images)
        (targets,) = _values(tapped(traced.module, [place.theirs]), images)
        loss = _block_loss(part, inputs, targets)
        parameters, before = _parameters(relaxed, place), number * how.steps

        def tell(done: int, before: int = before) -> None:
            _tell(on_step, before + done, len(ends) * how.steps)

        with _only(relaxed, parameters):
            _descend(parameters, loss, len(images), how, tell)


def _block_loss(
    part: nn.Module, inputs: Sequence[Tensor], targets: Tensor
) -> Callable[[Tensor], Tensor]:
    """Returns the error of what follows from known inputs, as a function of the images' numbers."""
    spread = _spread(targets)

    def loss(chosen: Tensor) -> Tensor:
        return _error(part(*(value[chosen] for value in inputs)), targets[chosen], spread)

    return loss


def _descend(
    parameters: Sequence[nn.Parameter],
    loss: Callable[[Tensor], Tensor],
    images: int,
    how: Reconstruction,
    tell: Callable[[int], None],
) -> None:
    """Makes the steps of Adam, each on images drawn without replacement."""
    generator = torch.Generator().manual_seed(how.seed)
    optimiser = torch.optim.Adam(parameters, how.lr)
    for step in range(how.steps):
        for group in optimiser.param_groups:
            group["lr"] = how.lr * _share(step, how.steps)
        chosen = torch.randperm(images, generator=generator)[: how.batch]
        value = loss(chosen)
        if not math.isfinite(float(value.detach())):
            raise DivergedError(
                f"reconstruction diverged at step {step + 1} of {how.steps} with lr {how.lr:g}; "
                "lower finetune.reconstruct.lr"
            )
        optimiser.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        tell(step + 1)


def _share(step: int, steps: int) -> float:
    """Returns the share of the peak learning rate: a linear rise, then a half cosine to 0."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2


@torch.no_grad()
def _values(network: nn.Module, images: Any) -> list[Tensor]:
    """Returns every value that a network puts out, over all images."""
    found = [network(*parts_of(part)) for part in chunks(images, CHUNK_IMAGES)]
    return [torch.cat(values) for values in zip(*found, strict=True)]


def _placed(images: Any, relaxed: RelaxedNet) -> Any:
    """Returns inputs where a network is, and in its type unless they are whole numbers."""
    like = next(relaxed.parameters())
    return mapped(lambda x: x.to(like) if x.is_floating_point() else x.to(like.device), images)


def _spread(targets: Tensor) -> Tensor:
    """Returns the variance of all values; 1 where they are all the same, or whole numbers."""
    if not targets.is_floating_point():
        return torch.ones((), device=targets.device)
    variance = targets.var()
    return torch.where(variance > 0, variance, torch.ones_like(variance))


def _error(values: Tensor, targets: Tensor, spread: Tensor) -> Tensor:
    if not targets.is_floating_point():
        return torch.zeros_like(spread)
    return (values - targets).square().mean() / spread


def _parameters(relaxed: RelaxedNet, place: Place) -> list[nn.Parameter]:
    return list(relaxed.blocks[block_key(place.candidate.block)].parameters())


@contextmanager
def _only(relaxed: RelaxedNet, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Computes gradients of these parameters alone; what was wanted before is wanted after."""
    wanted = {p: p.requires_grad for p in relaxed.parameters()}
    chosen = set(parameters)
    for parameter in wanted:
        parameter.requires_grad_(parameter in chosen)
    try:
        yield
    finally:
        for parameter, before in wanted.items():
            parameter.requires_grad_(before)
            parameter.grad = None


def _tell(on_step: OnStep | None, done: int, total: int) -> None:
    if on_step is not None:
        on_step(done, total)
