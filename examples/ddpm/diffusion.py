"""What a U-Net is trained and sampled with: images, noise, the loss, and the loop of DDIM."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEPS = 1000
"""Time steps of the noise schedule: linear betas from 1e-4 to 0.02, as published."""

KEPT = torch.cumprod(1 - torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64), 0)
"""Share of the image's variance that is left at each step."""

GLYPHS = Path(__file__).parents[1] / "glyphs" / "data"


def glyphs(split: str) -> Tensor:
    """Returns grey images ``(N, 1, 16, 16)`` in -1 to 1, letters bright, each of full contrast."""
    with np.load(GLYPHS / f"{split}.npz", allow_pickle=False) as arrays:
        images = torch.from_numpy(arrays["images"]).float().mean(3)
    small = F.avg_pool2d(images[:, None], 2)
    border = torch.cat([small[..., 0, :], small[..., -1, :], small[..., 0], small[..., -1]], 2)
    bright = small - border.median(2, keepdim=True).values[..., None]
    bright = bright * bright.flatten(1).sum(1).sign().reshape(-1, 1, 1, 1)
    return (bright / bright.flatten(1).max(1).values.reshape(-1, 1, 1, 1)).clamp(0, 1) * 2 - 1


def noised(images: Tensor, steps: Tensor, noise: Tensor) -> Tensor:
    """Returns images at time steps ``(N,)``."""
    kept = KEPT[steps].float().reshape(-1, 1, 1, 1)
    return kept.sqrt() * images + (1 - kept).sqrt() * noise


def batches(
    images: Tensor, count: int, size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields noised images, their steps, and the noise.

    Args:
        images: ``(N, C, H, W)``.
        count: Number of batches.
        size: Images in each.
        generator: What draws images, steps and noise.
    """
    for _ in range(count):
        chosen = images[torch.randint(len(images), (size,), generator=generator)]
        steps = torch.randint(STEPS, (size,), generator=generator)
        noise = torch.randn(chosen.shape, generator=generator)
        yield noised(chosen, steps, noise), steps, noise


def train(
    network: nn.Module,
    images: Tensor,
    steps: int,
    lr: float,
    seed: int,
    note: Callable[[str], None] = print,
) -> None:
    """Trains a network to predict noise, in place; it ends with the average of its weights.

    Adam with a linear warm-up and a cosine, gradients cut off at 1, batches of 64; the average
    forgets over the last tenth of the training.

    Args:
        network: Maps noised images and steps to the noise; in training mode.
        images: ``(N, C, H, W)``.
        steps: Number of steps.
        lr: The highest learning rate.
        seed: Of dropout, and of whatever is drawn.
        note: Called with a line every 100 steps.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(network.parameters(), lr)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda t: min(1, (t + 1) / warm) * (0.5 + 0.5 * math.cos(math.pi * t / steps))
    )
    average, total = copy.deepcopy(network).eval(), 0.0
    keep = 1 - 10 / steps
    for number, (x, t, noise) in enumerate(batches(images, steps, 64, generator), start=1):
        loss = F.mse_loss(network(x, t), noise)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
                slow.lerp_(fast, 1 - min(keep, number / (number + 10)))
        total += float(loss.detach())
        if number % 100 == 0:
            note(f"step {number}/{steps}  loss {total / 100:.4f}")
            total = 0.0
    network.load_state_dict(average.state_dict())
    network.eval()


@torch.no_grad()
def held_out_loss(network: nn.Module, images: Tensor) -> float:
    """Returns the mean squared error of the noise on images, each at one step; always the same."""
    generator = torch.Generator().manual_seed(1)
    steps = torch.linspace(0, STEPS - 1, len(images)).long()
    noise = torch.randn(images.shape, generator=generator)
    x = noised(images, steps, noise)
    parts = zip(x.split(100), steps.split(100), noise.split(100), strict=True)
    return sum(float(F.mse_loss(network(a, t), n)) * len(a) for a, t, n in parts) / len(x)


def sample(predict: Callable[[Tensor, Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    """Returns images made of noise by DDIM (Song, Meng, Ermon, ICLR 2021), without new noise.

    Args:
        predict: Maps images and time steps to noise.
        start: The noise, ``(N, C, H, W)``.
        steps: How often the network runs.
    """
    times = torch.linspace(STEPS - 1, 0, steps).long().tolist()
    x = start
    for now, then in zip(times, [*times[1:], -1], strict=True):
        kept, later = KEPT[now].item(), KEPT[then].item() if then >= 0 else 1.0
        noise = predict(x, torch.full((len(x),), now))
        image = ((x - (1 - kept) ** 0.5 * noise) / kept**0.5).clamp(-1, 1)
        noise = (x - kept**0.5 * image) / (1 - kept) ** 0.5
        x = later**0.5 * image + (1 - later) ** 0.5 * noise
    return x
