"""Trains one of the glyph networks from scratch and writes its weights as safetensors.

    python examples/glyphs/train.py resnet20 --data DIR --out weights/resnet20.safetensors

``DIR`` holds the full ``train.npz`` and ``val.npz``. The epoch count is fixed beforehand and the
last epoch's weights are kept; ``val`` is only printed, and ``test`` is never opened here.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import nets
import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

MEAN, STD = 0.5, 0.25


def load(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns normalised images ``(N, 3, 32, 32)`` float32 and labels ``(N,)`` int64."""
    with np.load(path, allow_pickle=False) as arrays:
        images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).float().div_(255)
        return images.sub_(MEAN).div_(STD).contiguous(), torch.from_numpy(arrays["labels"])


def shift(images: torch.Tensor, pixels: int, generator: torch.Generator) -> torch.Tensor:
    """Returns each image moved by up to ``pixels`` in x and y, edges replicated."""
    n, _, height, width = images.shape
    padded = F.pad(images, (pixels,) * 4, mode="replicate")
    dy, dx = torch.randint(0, 2 * pixels + 1, (2, n, 1), generator=generator)
    rows = (torch.arange(height) + dy)[:, None, :, None]
    columns = (torch.arange(width) + dx)[:, None, None, :]
    image = torch.arange(n)[:, None, None, None]
    channel = torch.arange(images.shape[1])[None, :, None, None]
    return padded[image, channel, rows, columns]


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Returns top-1 accuracy in percent."""
    model.eval()
    hits = sum(
        int((model(x).argmax(1) == y).sum())
        for x, y in zip(images.split(500), labels.split(500), strict=True)
    )
    return 100 * hits / len(labels)


def main() -> None:
    """Trains with AdamW, one warm-up epoch and a cosine schedule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=("resnet20", "mobilenet_v2"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    model = getattr(nets, options.name)()
    images, labels = load(options.data / "train.npz")
    val = load(options.data / "val.npz")
    steps = len(labels) // options.batch
    warm_up, total = steps, options.epochs * steps
    optimiser = torch.optim.AdamW(model.parameters(), options.lr, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda t: (
            (t + 1) / warm_up
            if t < warm_up
            else 0.5 * (1 + math.cos(math.pi * (t - warm_up) / (total - warm_up)))
        ),
    )
    for epoch in range(options.epochs):
        started, loss_sum = time.perf_counter(), 0.0
        model.train()
        for picked in torch.randperm(len(labels), generator=generator).split(options.batch)[:steps]:
            logits = model(shift(images[picked], 2, generator))
            loss = F.cross_entropy(logits, labels[picked], label_smoothing=0.1)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            loss_sum += float(loss)
        print(
            f"epoch {epoch + 1}/{options.epochs}  loss {loss_sum / steps:.3f}  "
            f"val {accuracy(model, *val):.2f} %  {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), options.out)


if __name__ == "__main__":
    main()
