"""Trains the U-Net from scratch on scenes of the training fonts, in some minutes on one core.

    python examples/segmentation/train.py --out examples/segmentation/unet.safetensors

The number of epochs is fixed beforehand and the last weights are kept; ``val`` is only printed,
and ``test`` is never opened here. Every epoch sees scenes of its own.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import metric
import scenes
import segmenter
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

GROUND = 0.05
"""Weight of the ground's pixels, which are 13 times as many as all others."""


@torch.no_grad()
def mean_iou(model: torch.nn.Module, images: torch.Tensor, classes: torch.Tensor) -> float:
    """Returns the mean intersection over union of a network in eval mode."""
    model.eval()
    found = metric.mean_iou()
    for x, y in zip(images.split(100), classes.split(100), strict=True):
        found.update(model(x), y)
    return found.compute()


def main() -> None:
    """Trains with AdamW, one warm-up epoch and a cosine schedule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--scenes", type=int, default=1500, help="an epoch")
    parser.add_argument("--batch", type=int, default=15)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    model = segmenter.unet()
    weight = torch.tensor([GROUND, *[1.0] * (len(scenes.CLASSES) - 1)])
    val = scenes.tensors("val")
    steps = options.scenes // options.batch
    total = options.epochs * steps
    optimiser = torch.optim.AdamW(model.parameters(), options.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda t: min((t + 1) / steps, 0.5 * (1 + math.cos(math.pi * t / total))),
    )
    for epoch in range(options.epochs):
        started, loss_sum = time.perf_counter(), 0.0
        images, classes = scenes.tensors("train", options.scenes, epoch * options.scenes)
        model.train()
        for picked in torch.arange(options.scenes).split(options.batch)[:steps]:
            loss = F.cross_entropy(model(images[picked]), classes[picked], weight)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            loss_sum += float(loss.detach())
        print(
            f"epoch {epoch + 1}/{options.epochs}  loss {loss_sum / steps:.3f}  "
            f"val {mean_iou(model, *val):.3f}  {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), options.out)


if __name__ == "__main__":
    main()
