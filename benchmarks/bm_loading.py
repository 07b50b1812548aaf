"""Images per second of a folder at 224: loaded alone, trained alone, and both together.

Run as ``python -m benchmarks.bm_loading``; some minutes on a quiet machine. JPEGs of 256 to 500
pixels a side are made from a seed, and loaded as the paper's recipe wants them: a random resized
crop and a flip. The training alone is that of the same network on batches that lie in memory.
Each figure is the median of the epochs behind the first. With ``--record`` it writes
``docs/results/data/loading.jsonl`` and ``docs/results/loading.md``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.results import Page, measured_by
from benchmarks.workloads import network
from trt_layermerge.core.jsonio import Json
from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.data import Framing, LabelledData, open_data
from trt_layermerge.data.augment import parse_augment
from trt_layermerge.data.loader import Batches, Images, usual_workers
from trt_layermerge.finetune.loop import finetune
from trt_layermerge.finetune.recipe import FinetuneRecipe

SIZE, CLASSES = 224, 4
AUGMENT = ("crop:0.08", "flip")


def make_folder(folder: Path, images: int, seed: int = 0) -> LabelledData:
    """Writes JPEGs of smooth colours with noise, of 256 to 500 pixels a side; returns them."""
    rng = np.random.default_rng(seed)
    for i in range(images):
        height, width = (int(side) for side in rng.integers(256, 501, 2))
        coarse = rng.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth, np.int16) + rng.integers(-12, 12, (height, width, 1))
        path = folder / str(i % CLASSES) / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return open_data(f"imagefolder:{folder}", Preprocess(), framing=Framing((SIZE, SIZE), 0.875))


def loaded(data: LabelledData, batch: int, workers: int, epochs: int) -> float:
    """Returns images per second of the loader alone."""
    loader = Batches(
        data,
        batch,
        augmentation=parse_augment(AUGMENT, data),
        drop_last=True,
        workers=workers,
    )
    seconds = []
    for epoch in range(epochs + 1):
        started = time.perf_counter()
        for _ in loader.drawn(epoch):
            pass
        seconds.append(time.perf_counter() - started)
    return len(loader) * batch / statistics.median(seconds[1:])


def trained(
    data: Images, images: int, recipe: FinetuneRecipe, name: str, device: str, workers: int
) -> float:
    """Returns images per second of a training, whatever it reads."""
    student = network(name)
    result = finetune(student, data, None, recipe, device=device, workers=workers)
    return images / statistics.median(row.seconds for row in result.history[1:])


def measure(
    folder: Path, images: int, batch: int, epochs: int, name: str, device: str, workers: int | None
) -> list[Json]:
    """Returns images per second of the loader, of the training, and of both together."""
    data = make_folder(folder, images)
    steps = images // batch
    if workers is None:
        workers = usual_workers(data, batch, steps, by_image=True)
    recipe = FinetuneRecipe(
        epochs=epochs + 1, batch=batch, lr=1e-4, distill_weight=0.0, augment=AUGMENT
    )
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batch, 3, SIZE, SIZE, generator=generator)
    cached = [(inputs, torch.arange(batch) % CLASSES)] * steps
    rest = (recipe, name, device, workers)
    found = {
        "loader": loaded(data, batch, workers, epochs),
        "training": trained(cached, steps * batch, *rest),
        "together": trained(data, steps * batch, *rest),
    }
    slower = min(found["loader"], found["training"])
    return [
        {"name": what, "images_per_second": rate, "of_slower": rate / slower, "workers": workers}
        for what, rate in found.items()
    ]


HEAD = """\
# Loading images while training

{origin}

{images} JPEGs of 256 to 500 pixels a side, made from a seed, become {size}x{size} by a random \
resized crop and a flip in {workers} processes; {network} is trained on {device} in batches of \
{batch}, by a training process of {threads} thread(s). "Training" alone reads batches that lie in \
memory. Medians of {epochs} epochs behind a first one.

| what | images a second | of the slower of the two |
|---|---|---|
"""


def text(header: Json, rows: list[Json]) -> str:
    """Returns the page."""
    lines = [
        f"| {r['name']} | {r['images_per_second']:.3g} | {r['of_slower']:.2f} |\n" for r in rows
    ]
    head = HEAD.format(
        origin=measured_by("bm_loading --record", header),
        size=SIZE,
        workers=rows[0]["workers"],
        **{k: header[k] for k in ("images", "network", "device", "batch", "threads", "epochs")},
    )
    return head + "".join(lines)


PAGE = Page("loading", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, and prints or records; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bm_loading", description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=5, help="behind the first")
    parser.add_argument("--network", default="mobilenet_v2", help="one of torchvision's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, help="processes that load; the usual by default")
    parser.add_argument("--threads", type=int, default=1, help="of the training process")
    parser.add_argument("--record", action="store_true", help="write the figures and their page")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(
            Path(folder),
            *(given.images, given.batch, given.epochs, given.network, given.device, given.workers),
        )
    for row in rows:
        print(f"{row['name']:10} {row['images_per_second']:8.1f} images/s {row['of_slower']:6.2f}")
    if given.record:
        settings = {
            key: getattr(given, key)
            for key in ("images", "network", "device", "batch", "threads", "epochs")
        }
        PAGE.record(settings, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
