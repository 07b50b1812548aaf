"""EfficientNet-Lite0 with ImageNet's weights, made faster with photographs that have no labels.

Run as ``python -m benchmarks.bm_lite0 --photographs DIR`` after ``examples/lite0/prepare.py``; the
same command continues after an interruption. One latency and one importance table serve three ways
to a network (both kinds of removal and training, layers alone and training, no training), each at
two measured speed-ups. ``test`` is opened once for each. Runs lie in ``runs/lite0``; writes
``docs/results/lite0.md`` and its picture. ``--quick`` tries the whole way in minutes, at a small
input and with few candidates, and writes into the folder of the runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.results import Page, measured_by
from benchmarks.studies.settings import ROOT
from benchmarks.studies.statistics import Grouped
from trt_layermerge.core.agreement import agreements
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.jsonio import Json, read_json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.data.loader import batches
from trt_layermerge.errors import InfeasibleBudgetError
from trt_layermerge.pipeline import api
from trt_layermerge.pipeline.options import STAGES, NullReporter, RunOptions
from trt_layermerge.pipeline.run import Run
from trt_layermerge.search.closing import BudgetMissedError

EXAMPLE = ROOT / "examples" / "lite0"
RECIPE = EXAMPLE / "recipe.yaml"
RUNS = ROOT / "runs" / "lite0"
KIND = "lite0"
SPEEDUPS = (1.25, 1.5)
SHOWN = {"chelsea": "chelsea.png", "coffee": "coffee.png"}
TABLES = ("inspect", "latency", "importance")

ARMS: Mapping[str, Mapping[str, Any]] = {
    "layermerge": {},
    "layer": {"search.mode": "layer"},
    "post-training": {
        "finetune.preset": "none",
        "finetune.reconstruct.steps": 200,
        "finetune.reconstruct.batch": 32,
        "finetune.reconstruct.lr": 1e-3,
    },
}
"""What each way changes in the recipe."""

QUICK_SPEEDUPS = (1.05,)
"""What few candidates and a small input reach on a busy machine."""

QUICK: Mapping[str, Any] = {
    "model.input": [1, 3, 96, 96],
    "measure.rounds": 5,
    "measure.networks": 4,
    "search.limits": {"max_units": 3, "kernels": [1, 3]},
    "search.finalists": 3,
    "search.loops": 3,
    "search.samples": 0,
    "importance.fit_images": 16,
    "importance.score_images": 16,
    "finetune.options.epochs": 1,
    "finetune.reconstruct.steps": 2,
    "finetune.reconstruct.batch": 8,
}


def perform(run: str, stages: Sequence[str], runs: Path, changes: Mapping[str, Any]) -> Run:
    """Does the stages of a run that are not up to date, and returns the run."""
    options = RunOptions(run, runs, RECIPE, {**changes, "build.engine": "none"})
    for stage in stages:
        print(f"{run}: {stage}", flush=True)
        api.run_stage(stage, options)
    return api.open_run(RECIPE, options, NullReporter())


def arm_of(name: str, speedup: float, runs: Path, changes: Mapping[str, Any]) -> Run:
    """Returns the run of one way at one speed-up, done if it was not yet."""
    run = f"{name}-{speedup:g}x"
    if not (runs / run).exists():
        shutil.copytree(runs / "tables", runs / run)
    own = {**ARMS[name], **changes, "search.speedup": speedup}
    return perform(run, STAGES, runs, own)


def compared(network: nn.Module, run: Run) -> Json:
    """Returns how far a network's answers on ``test`` are from the original's.

    Intervals draw whole photographs: crops of one stand or fall together.
    """
    data, original = run.data("test"), run.session.model
    divergence, same = [], []
    with torch.no_grad():
        for images, _ in batches(data, 64):
            ours, theirs = original(images), network(images)
            p, q = ours.double().log_softmax(1), theirs.double().log_softmax(1)
            divergence.append((p.exp() * (p - q)).sum(1).numpy())
            same.append(agreements(ours.numpy(), theirs.numpy(), "classes"))
    names = [file.parent.name for file in data.files]
    groups = Grouped(np.unique(names, return_inverse=True)[1])
    found: Json = {"images": len(names), "photographs": len(set(names))}
    for name, values in (("kl", divergence), ("agreement", same)):
        interval = groups.accuracy(np.concatenate(values)[None])
        found[name] = [interval.mean, interval.low, interval.high]
    return found


def replaced(plan: MergePlan, graph: LayerGraph) -> Json:
    """Returns how many blocks of each kind a plan replaces, and what goes with them."""
    kinds = Counter(candidate.kind for candidate in plan.changed)
    return {
        "blocks": [
            [c.kind, *(graph.units[i].name for i in (c.block.start, c.block.end - 1))]
            for c in plan.changed
        ],
        "kinds": dict(sorted(kinds.items())),
        "convs": [len(graph.convs), plan.conv_count],
        "activations": [graph.activation_count, plan.activation_count],
    }


def row_of(
    name: str, speedup: float, seen: Mapping[str, Path], runs: Path, changes: Mapping[str, Any]
) -> Json:
    """Returns the figures of one way at one speed-up, or why it does not get there.

    Args:
        name: The way.
        speedup: What is asked of it.
        seen: Whole photographs, by name.
        runs: Folder of the runs.
        changes: What is changed in every recipe.

    Raises:
        BudgetMissedError: If the machine was too busy to tell; the same command tries again.
    """
    try:
        run = arm_of(name, speedup, runs, changes)
    except BudgetMissedError:
        raise
    except InfeasibleBudgetError as error:
        return {"arm": name, "asked": speedup, "refused": str(error)}
    bench = read_json(run.folder / "bench.json", "bench")
    merged = run.session.merged
    return {
        "arm": name,
        "asked": speedup,
        "speedup": [bench["speedup"], bench["low"], bench["high"]],
        "ms": [bench[side]["p50_ms"] for side in ("original", "merged")],
        "before": compared(run.session.filled("repaired.safetensors"), run),
        "after": compared(merged, run),
        "replaced": replaced(run.plan, run.graph),
        "answers": {photo: prepare().answers(merged, file, 3) for photo, file in seen.items()},
    }


def prepare() -> ModuleType:
    """Returns the script of the example."""
    spec = importlib.util.spec_from_file_location("lite0_prepare", EXAMPLE / "prepare.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(found: Json) -> str:
    """Returns divergence and agreement with their intervals, as cells of a table."""
    (kl, low, high), (same, least, most) = found["kl"], found["agreement"]
    return f"{kl:.3f} ({low:.3f} to {high:.3f}) | {same:.1%} ({least:.0%} to {most:.0%})"


def table(rows: list[Json]) -> Iterator[str]:
    """Yields the lines of all ways."""
    for row in rows:
        (speedup, low, high), made = row["speedup"], row["replaced"]
        kinds = ", ".join(f"{count} {kind}" for kind, count in made["kinds"].items())
        yield (
            f"| {row['arm']} | {row['asked']:g}x | {speedup:.2f}x ({low:.2f} to {high:.2f}) "
            f"| {row['before']['kl'][0]:.3f} | {cells(row['after'])} | {kinds} "
            f"| {made['convs'][0]} → {made['convs'][1]} "
            f"| {made['activations'][0]} → {made['activations'][1]} |"
        )


def seen_table(header: Json, rows: list[Json]) -> Iterator[str]:
    """Yields what each network sees in the whole photographs."""

    def told(answers: list[list[Any]]) -> str:
        return ", ".join(f"{name} {share:.0%}" for name, share in answers)

    yield f"| original | {' | '.join(told(header['original'][photo]) for photo in SHOWN)} |"
    for row in rows:
        shown = " | ".join(told(row["answers"][photo]) for photo in SHOWN)
        yield f"| {row['arm']}, {row['asked']:g}x | {shown} |"


def text(header: Json, rows: list[Json]) -> str:
    """Returns the page."""
    refused = [row for row in rows if "refused" in row]
    rows = [row for row in rows if "refused" not in row]
    test = rows[0]["after"]
    lines = [
        "# EfficientNet-Lite0 with ImageNet's weights, by photographs without labels",
        "",
        measured_by("bm_lite0", header),
        "",
        f"Weights and images are those of [examples/lite0](../../examples/lite0/README.md): "
        f"{header['train']:,} crops of wallpapers and of scikit-image's photographs to fit, score "
        f"and train on, {header['val']} to choose a plan by, and {test['images']} of "
        f"{test['photographs']} photographs that nothing else has seen to judge. None has a label: "
        "what counts is how near the answers stay to the original's. Intervals are 95 %, over "
        "draws of whole photographs, which are few. ImageNet itself was not tried. Seed 0; "
        f"input {header['size']}.",
        "",
        "`layermerge` may take out activations and convolutions, `layer` convolutions alone; both "
        "are then taught by the original's answers (`recipe.yaml`). `post-training` takes "
        "`layermerge`'s means, fits in closed form and reconstructs, and trains no more. KL is the "
        "mean divergence of the answers, over 1,000 classes, in nats.",
        "",
        "| way | asked | measured, spread | KL before training | KL after | same top-1 | replaced "
        "| convolutions | activations |",
        "|---|---|---|---|---|---|---|---|---|",
        *table(rows),
        "",
        *(f"{row['arm']} at {row['asked']:g}x: {row['refused']}.\n" for row in refused),
        "For `post-training`, before training is after reconstruction.",
        "",
        "## What it sees",
        "",
        "Two whole photographs of `test`, the three likeliest classes:",
        "",
        f"| network | {' | '.join(SHOWN)} |",
        "|---|---|---|",
        *seen_table(header, rows),
        "",
        "![The cat and the coffee, and what each network sees](lite0.png)",
        "",
        "## What went",
        "",
        *(
            f"- {row['arm']}, {row['asked']:g}x: "
            + "; ".join(
                f"{kind} {first}" + (f" to {last}" if last != first else "")
                for kind, first, last in row["replaced"]["blocks"]
            )
            for row in rows
        ),
    ]
    return "\n".join(lines) + "\n"


PAGE = Page(KIND, text)


def draw(header: Json, rows: list[Json], seen: Mapping[str, Path], path: Path) -> None:
    """Writes the picture: both photographs, and the likeliest classes by each network."""
    from matplotlib.figure import Figure
    from PIL import Image

    shown = [("original", header["original"])]
    shown += [
        (f"{row['arm']} {row['asked']:g}x", row["answers"]) for row in rows if "answers" in row
    ]
    figure = Figure(figsize=(2.1 * (len(shown) + 1), 3.6), layout="constrained")
    axes = figure.subplots(len(SHOWN), len(shown) + 1)
    for line, photo in zip(axes, SHOWN, strict=True):
        with Image.open(seen[photo]) as image:
            line[0].imshow(image.convert("RGB").resize((300, 200)))
        line[0].axis("off")
        for axis, (name, answers) in zip(line[1:], shown, strict=True):
            names, shares = zip(*answers[photo], strict=True)
            axis.barh(range(len(names)), shares, color="#4fb286")
            for place, label in enumerate(names):
                axis.text(0.02, place, label, va="center", fontsize=7)
            axis.set(xlim=(0, 1), yticks=[], xticks=[0, 1])
            axis.invert_yaxis()
            axis.set_title(name, fontsize=8)
    figure.savefig(path, dpi=80)


def main() -> None:
    """Makes the tables, goes every way at every speed-up, and writes the page."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--photographs", type=Path, required=True, metavar="skimage/data")
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="a trial, written into --runs")
    options = parser.parse_args()
    runs = options.runs.resolve()
    made = {f"data.{split}": f"images:{runs / split}" for split in ("train", "val", "test")}
    changes = {"model.weights": str(runs / "weights.safetensors"), **made}
    changes |= QUICK if options.quick else {}
    seen = {photo: options.photographs / file for photo, file in SHOWN.items()}
    tables = perform("tables", TABLES, runs, changes)
    rows = []
    for speedup in QUICK_SPEEDUPS if options.quick else SPEEDUPS:
        for name in ARMS:
            rows.append(row_of(name, speedup, seen, runs, changes))
            print(rows[-1], flush=True)
    model = tables.session.model
    sizes = {split: len(tables.data(split) or ()) for split in ("train", "val")}
    settings = {
        **sizes,
        "size": tables.recipe.model.input[2],
        "original": {photo: prepare().answers(model, file, 3) for photo, file in seen.items()},
    }
    page = Page(KIND, text, runs / "page") if options.quick else PAGE
    page.data.parent.mkdir(parents=True, exist_ok=True)
    page.record(settings, rows)
    draw(settings, rows, seen, page.results / "lite0.png")


if __name__ == "__main__":
    main()
