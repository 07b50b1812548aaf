"""What fine-tuning makes of the demo's plan: two starts, three seeds, and a longer training.

Run as ``python -m benchmarks.bm_demo`` on a quiet machine; about twenty minutes on two cores, and
the same command continues after an interruption. The plan of the demo is found once; every arm
trains a copy of that run. Settings were chosen on ``val``; ``test`` is opened once per arm and
decides nothing. With ``--time`` the demo alone is run as ``make demo`` does it once everything is
installed, and only the time of its stages is recorded. Writes ``docs/results/glyphs-demo.md``.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import Page, measured_by
from benchmarks.studies.journal import machine, session
from benchmarks.studies.settings import ROOT
from trt_layermerge.core.jsonio import Json, read_json, read_lines
from trt_layermerge.pipeline import api
from trt_layermerge.pipeline.folder import RunFolder, stage_seconds
from trt_layermerge.pipeline.options import STAGES, RunOptions
from trt_layermerge.pipeline.recipe import load_recipe

RECIPE = ROOT / "engines" / "recipes" / "glyphs-resnet20-cpu.yaml"
RUNS = ROOT / "runs" / "bm_demo"
TRAINING = STAGES[STAGES.index("finetune") :]
PLANNING = STAGES[: -len(TRAINING)]


@dataclass(frozen=True)
class Arm:
    """One way to train the demo's plan."""

    start: str
    epochs: int
    seed: int

    @property
    def run(self) -> str:
        """Name of its run."""
        return f"{self.start}-{self.epochs}-{self.seed}"


ARMS = [Arm(start, 100, seed) for start in ("repair", "original") for seed in (0, 1, 2)]
ARMS += [Arm("repair", 300, 0)]


def perform(run: str, stages: tuple[str, ...], overrides: dict[str, Any]) -> None:
    """Does the stages of a run that are not up to date."""
    for stage in stages:
        api.run_stage(stage, RunOptions(run, RUNS, RECIPE, {**overrides, "build.engine": "none"}))


def train(arm: Arm) -> Json:
    """Returns the figures of one arm, trained if it was not yet."""
    folder = RUNS / arm.run
    if not folder.exists():
        shutil.copytree(RUNS / "plan", folder)
    overrides = {
        "finetune.start": arm.start,
        "finetune.options.epochs": arm.epochs,
        "finetune.options.seed": arm.seed,
    }
    perform(arm.run, TRAINING, overrides)
    header, rows = read_lines(folder / "finetune.jsonl", "finetune")
    summary = read_json(folder / "summary.json", "summary")
    return {
        "start": arm.start,
        "epochs": arm.epochs,
        "seed": arm.seed,
        "speedup": summary["speedup"],
        "val_original": header["original_val_accuracy"],
        "val_before": header["start_val_accuracy"],
        "val_after": rows[-1]["val_accuracy"],
        "test_original": summary["original"]["accuracy"],
        "test_before": summary["repaired"]["accuracy"],
        "test_after": summary["merged"]["accuracy"],
        "seconds": sum(row["seconds"] for row in rows),
    }


def timed() -> Json:
    """Returns the seconds of each stage of the demo, and where and when they were taken.

    No engine is built: TensorRT is none of the demo's packages.
    """
    with tempfile.TemporaryDirectory() as runs:
        api.run_recipe(RECIPE, RunOptions("demo", Path(runs), None, {"build.engine": "none"}))
        stages = stage_seconds(RunFolder(Path(runs) / "demo"))
        summary = read_json(Path(runs) / "demo" / "summary.json", "summary")
    return {
        "stages": stages,
        "speedup": summary["speedup"],
        "test_after": summary["merged"]["accuracy"],
        "threads": torch.get_num_threads(),
        **machine(),
        **session(),
    }


HEAD = """\
# The demo's plan, trained in different ways

{origin}

Threads for training: {threads}. One plan (seed 0, {changed} blocks replaced, measured \
{speedup:.2f}x) is trained on the 2,000 shipped images, {taught}. The original has \
{val:.1%} on the 300 images of `val` and {test:.1%} on the 1,000 of `test`; one image of `test` is \
0.1 point, its standard error about 0.8.

`repair` starts from the blocks fitted in sequence, `original` from the original weights with the \
activations taken out, as the paper does. Everything else is equal. The recipe was chosen for the \
repaired start, on the 3,000 `val` images of the full set; the learning rate was not tuned for the \
other start. Seconds are those of training, and mean little where the machine has other work.

| start | epochs | seed | speed-up | val before | val after | test before | test after \
| points | s |
|---|---|---|---|---|---|---|---|---|---|
"""


def line(row: Json) -> str:
    """Returns the line of an arm."""
    shares = ("val_before", "val_after", "test_before", "test_after")
    return (
        f"| {row['start']} | {row['epochs']} | {row['seed']} | {row['speedup']:.2f}x "
        f"| {' | '.join(format(row[name], '.1%') for name in shares)} "
        f"| {100 * (row['test_after'] - row['test_original']):+.1f} | {row['seconds']:.0f} |\n"
    )


def text(header: Json, rows: list[Json]) -> str:
    """Returns the page; figures without a share of their own are older than that of labels."""
    share = header.get("distill_weight", 1.0)
    taught = (
        "by the original's answers alone (`glyphs-resnet20-unlabelled-cpu.yaml`), as the recipe "
        "of the demo was then"
        if share == 1
        else f"by labels and, with a share of {share:g}, the original's answers"
    )
    rows, times = arms(rows), [row for row in rows if "stages" in row]
    head = HEAD.format(
        origin=measured_by("bm_demo", header),
        threads=header["threads"],
        changed=header["changed"],
        speedup=header["measured_speedup"],
        taught=taught,
        val=rows[0]["val_original"],
        test=rows[0]["test_original"],
    )
    return "".join([head, *map(line, rows), *map(duration, times)])


def arms(rows: list[Json]) -> list[Json]:
    """Returns the rows of the trainings."""
    return [row for row in rows if "start" in row]


def duration(row: Json) -> str:
    """Returns what the page says about the time of the demo."""
    seconds = row["stages"]
    lines = [
        "",
        "## How long it takes",
        "",
        measured_by("bm_demo --time", row),
        f"{row['threads']} threads, everything installed, nothing computed before: "
        f"{sum(seconds.values()):.0f} s in all, to {row['speedup']:.2f}x and "
        f"{row['test_after']:.1%} on `test`.",
        "",
        "| " + " | ".join(seconds) + " |",
        "|" + "---|" * len(seconds),
        "| " + " | ".join(f"{s:.1f} s" for s in seconds.values()) + " |",
    ]
    return "\n".join(lines) + "\n"


PAGE = Page("glyphs-demo", text)


def main() -> None:
    """Finds the plan, trains every arm and writes the page; or times the demo alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", action="store_true", help="only the stages of the demo")
    header, recorded = read_lines(PAGE.data, PAGE.name)
    if parser.parse_args().time:
        header.pop("schema")  # written anew
        PAGE.record(header, [*arms(recorded), timed()])
        return
    perform("plan", PLANNING, {})
    rows = []
    for arm in ARMS:
        rows.append(train(arm))
        print(line(rows[-1]), end="", flush=True)
    plan = read_json(RUNS / "plan" / "plan.json", "plan")
    settings = {
        "threads": torch.get_num_threads(),
        "changed": sum(not c["original"] for c in plan["candidates"]),
        "measured_speedup": plan["notes"]["measured_speedup"],
        "distill_weight": load_recipe(RECIPE, {}).finetune.options["distill_weight"],
    }
    PAGE.record(settings, [*rows, *(row for row in recorded if "stages" in row)])


if __name__ == "__main__":
    main()
