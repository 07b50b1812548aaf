"""Networks of five families that people bring: a plan at 1.25x each, what it removes and loses.

Run as ``python -m benchmarks.bm_plans --weights FILE --images FILE``; each network has a process of
its own, and the same command continues after an interruption. ``examples/lite0/prepare.py`` makes
the weights (safetensors, of EfficientNet-Lite0) and photographs, which an npz file holds as uint8
``(N, H, W, 3)`` under ``train``, ``val`` and ``test``. The other networks have random weights,
whose norms know the photographs. Nothing is trained. ``--quick`` takes fewer images and
candidates, and the page says so of every row. Writes ``docs/results/plans.md``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import trt_layermerge as tlm
from benchmarks import tasks
from benchmarks.bm_lite0 import replaced
from benchmarks.results import Page, measured_by
from benchmarks.studies.journal import commit, machine, session
from trt_layermerge.core.agreement import agreements
from trt_layermerge.core.jsonio import Json, append_line, read_lines, write_lines
from trt_layermerge.core.outputs import named
from trt_layermerge.errors import InfeasibleBudgetError
from trt_layermerge.importance.distance import Distance

KIND = "plans"
SEED, SPEEDUP, BATCH = 0, 1.25, 32
COUNTS = {"train": 256, "val": 64, "test": 192}
FEW = {"train": 64, "val": 32, "test": 96}
LITE0 = "tf_efficientnet_lite0"
NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "mobilenetv3_large_100": partial(timm.create_model, "mobilenetv3_large_100"),
    "benchmarks.tasks:Yolo": tasks.Yolo,
    # Layer scales that begin at 1e-6 would make every block worth nothing.
    "convnext_atto": partial(timm.create_model, "convnext_atto", ls_init_value=1.0),
    LITE0: partial(timm.create_model, LITE0),
    "efficientnet_b0": partial(timm.create_model, "efficientnet_b0"),
    "densenet121": partial(timm.create_model, "densenet121"),
}
SETTINGS: Json = {
    "seed": SEED,
    "importance": {"effort": "quick", "fit_images": 128, "score_images": 64},
}
QUICK: Json = {
    "seed": SEED,
    "measure": {"rounds": 5, "networks": 4},
    "search": {
        "limits": {"max_units": 3, "max_kernel": 5, "kernels": [1, 3]},
        **{"finalists": 2, "loops": 3, "samples": 0, "race_steps": 0},
    },
    "importance": {"effort": "quick", "fit_images": 32, "score_images": 32},
}


def photographs(path: Path, size: int, counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Returns inputs ``(N, 3, size, size)`` of every split, mean and deviation 0.5."""
    found = {}
    with np.load(path) as file:
        for split, count in counts.items():
            pixels = torch.from_numpy(file[split][:count]).permute(0, 3, 1, 2).float()
            small = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
            found[split] = (small / 255 - 0.5) / 0.5
    return found


@torch.no_grad()
def network(name: str, weights: Path | None, images: Tensor) -> nn.Module:
    """Returns a network: with its weights, or random ones and norms that have seen the images."""
    torch.manual_seed(SEED)
    model = NETWORKS[name]()
    if weights is not None:
        model.load_state_dict(load_file(weights))
        return model.eval()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over batches
    model.train()
    for part in images.split(BATCH):
        model(part)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


@torch.no_grad()
def compared(session: tlm.Session, other: nn.Module, images: Tensor) -> Json:
    """Returns how far the answers of another network are from the original's on some images."""
    batches, kinds = images.split(BATCH), tuple(session.outputs.values())
    originals = [session.model(part) for part in batches]
    answers = [other(part) for part in batches]
    distance = Distance.to(originals, kinds)
    values = Distance.to(originals, ["values"] * len(kinds))
    same = [
        agreements(ours.numpy(), theirs.numpy(), kind).mean()
        for original, answer in zip(originals, answers, strict=True)
        for kind, ours, theirs in zip(
            kinds, named(original).values(), named(answer).values(), strict=True
        )
    ]
    return {
        "distance": distance.name,
        "loss": distance.of(iter(answers)),
        "relative": values.of(iter(answers)),
        "agreement": float(np.mean(same)),
        "images": len(images),
    }


def row_of(name: str, weights: Path | None, path: Path, size: int, quick: bool) -> Json:
    """Returns the plan of a network and what it comes to, or why there is none."""
    started = time.perf_counter()
    images = photographs(path, size, FEW if quick else COUNTS)
    settings = QUICK if quick else SETTINGS
    row: Json = {
        "network": name,
        "real": weights is not None,
        "size": size,
        "quick": quick,
        "commit": commit(),
        "parameters": 0,
    }
    with tempfile.TemporaryDirectory() as folder:
        model = network(name, weights, images["train"])
        row["parameters"] = sum(p.numel() for p in model.parameters())
        opened = tlm.Session(model, images["train"][:1], folder=folder, settings=settings)
        train, val = ([*images[split].split(BATCH)] for split in ("train", "val"))
        opened.measure()
        opened.score(train)
        try:
            opened.search(train, val=val, speedup=SPEEDUP)
        except InfeasibleBudgetError as error:
            return {**row, "refused": str(error), "seconds": time.perf_counter() - started}
        opened.repair(train)
        loss = compared(opened, opened.relaxed, images["test"])
        merged = opened.merge(images["test"][:8])
        opened.export()
        bench = opened.bench()
        return {
            **row,
            "candidates": len(opened.candidates),
            "outputs": list(opened.outputs.values()),
            "speedup": [bench["speedup"], bench["low"], bench["high"]],
            "ms": [bench[side]["p50_ms"] for side in ("original", "merged")],
            "certificate": opened.certificate.max_rel_error,
            "loss": loss,
            "merged": compared(opened, merged, images["test"]),
            "replaced": replaced(opened.plan, opened.graph),
            "kept": sum(p.numel() for p in merged.parameters()),
            "seconds": time.perf_counter() - started,
            "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
            "load": session()["load"],
        }


def page(header: Json, rows: list[Json]) -> str:
    """Returns the page."""
    rows = sorted(rows, key=lambda row: list(NETWORKS).index(row["network"]))
    good = [row for row in rows if "speedup" in row]
    absent = [name for name in NETWORKS if name not in {row["network"] for row in rows}]
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    lines = [
        "# Networks that people bring, at 1.25x",
        "",
        measured_by("bm_plans", {**header, "commit": commits, "load": rows[-1].get("load", 0.0)})
        + f" One thread beside other work; seed {SEED}. Figures: `data/plans.jsonl`.",
        "",
        "Each goes through a session under the full rules, on crops of photographs "
        "([examples/lite0](../../examples/lite0/README.md)) without labels: {} to fit and score "
        "on, {} to choose by, and {} of other photographs to compare on.".format(*COUNTS.values())
        + (
            " Rows that are marked *few* had {}, {} and {}, and blocks of three units at most with "
            "kernels up to 5.".format(*FEW.values())
            if any(row["quick"] for row in rows)
            else ""
        ),
        "",
        f"`importance.effort` is `quick`, the backend ONNX Runtime; asked were {SPEEDUP:g}x, and "
        "nothing was trained: the loss is what training would start from. *Measured* is a bench of "
        "its own, after the search. *KL* is in nats; of outputs that are no classes the squared "
        "error over the squared size counts, in *error*.",
        "",
        f"**Only {LITE0} has real weights** (ImageNet's). The others are random, with norms that "
        "have seen the photographs: of them the table says what is removed and how fast that is, "
        "and nothing about quality.",
        "",
        "| network | weights | pixels | measured, spread | ms | KL | error | same answers | "
        "convolutions | activations | parameters, M | candidates | seconds |",
        "|" + "---|" * 13,
        *map(_line, good),
        "",
        *(f"- `{row['network']}`: {row['refused']}" for row in rows if "refused" in row),
        *([f"Not measured yet: {', '.join(absent)}.", ""] if absent else []),
        "## What went",
        "",
        *(f"- **{row['network']}**: {_blocks(row)}." for row in good),
    ]
    return "\n".join(lines) + "\n"


def _line(row: Json) -> str:
    (speedup, low, high), loss, made = row["speedup"], row["loss"], row["replaced"]
    kl = f"{loss['loss']:.3g}" if loss["distance"] == "KL" else ""
    weights = "ImageNet" if row["real"] else "random"
    few = " (few)" if row["quick"] else ""
    return (
        f"| {row['network']} | {weights} | {row['size']}{few} | "
        f"{speedup:.2f}x ({low:.2f} to {high:.2f}) | {row['ms'][0]:.2f} → {row['ms'][1]:.2f} | "
        f"{kl} | {loss['relative']:.3g} | {loss['agreement']:.0%} | "
        f"{made['convs'][0]} → {made['convs'][1]} | "
        f"{made['activations'][0]} → {made['activations'][1]} | "
        f"{row['parameters'] / 1e6:.1f} → {row['kept'] / 1e6:.1f} | {row['candidates']} | "
        f"{row['seconds']:.0f} |"
    )


def _blocks(row: Json) -> str:
    """Returns what a plan does, by kind, with the first and last unit of every block."""
    kinds: dict[str, list[str]] = {}
    for kind, first, last in row["replaced"]["blocks"]:
        kinds.setdefault(kind, []).append(first + (f" to {last}" if last != first else ""))
    return "; ".join(f"{kind}: {', '.join(blocks)}" for kind, blocks in sorted(kinds.items()))


PAGE = Page(KIND, page)


def main() -> None:
    """Goes through the networks that are missing, one row each, and writes the page."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=[*NETWORKS], help="which networks")
    parser.add_argument("--weights", type=Path, required=True, help=f"of {LITE0} (safetensors)")
    parser.add_argument("--images", type=Path, required=True, help="photographs (npz)")
    parser.add_argument("--size", type=int, default=224, help="rows and columns")
    parser.add_argument("--quick", action="store_true", help="fewer images and candidates")
    parser.add_argument("--one", action="store_true", help="in this process, figures to stdout")
    given = parser.parse_args()
    if given.one:
        (name,) = given.networks
        weights = given.weights if name == LITE0 else None
        print(json.dumps(row_of(name, weights, given.images, given.size, given.quick)))
        return
    if not PAGE.data.exists():
        write_lines(PAGE.data, KIND, {**machine(), **session()}, ())
    files: list[Any] = ["--weights", given.weights, "--images", given.images, "--size", given.size]
    files += ["--quick"] if given.quick else []
    for name in given.networks:
        if name in {row["network"] for row in read_lines(PAGE.data, KIND)[1]}:
            continue
        command = [sys.executable, "-m", "benchmarks.bm_plans", "--one", *files, "--", name]
        done = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True)
        append_line(PAGE.data, json.loads(done.stdout.splitlines()[-1]))
        PAGE.write()
        print(done.stdout.splitlines()[-1], flush=True)
    print(PAGE.path)


if __name__ == "__main__":
    main()
