"""Accuracy against measured speed-up without labels and without fine-tuning, in minutes.

Run as ``python -m benchmarks.bm_post_training``; about fifteen minutes on a quiet core, and the
same command continues after an interruption. Plans are found once for each network and speed-up.
How to reconstruct is chosen on ``val`` without its labels: by the divergence of the answers from
the original's, at the middle speed-up of each network. ``test`` is opened at the end, for that
setting alone. Trials lie in ``runs/bm_post_training``: delete them to measure anew. Writes
``docs/results/post-training.md``.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean
from typing import TypeAlias

import torch

from benchmarks.results import Page, measured_by
from benchmarks.studies.settings import ROOT, starts_of
from trt_layermerge.core.jsonio import Json, append_line, read_lines, write_lines
from trt_layermerge.finetune.evaluate import accuracy
from trt_layermerge.importance.distance import Distance
from trt_layermerge.merge import RelaxedNet
from trt_layermerge.pipeline import api
from trt_layermerge.pipeline.options import NullReporter, RunOptions
from trt_layermerge.pipeline.run import Run
from trt_layermerge.session.images import images_of

RUNS = ROOT / "runs" / "bm_post_training"
TRIALS = RUNS / "trials.jsonl"
KIND = "post-training"
SPEEDUPS = {"resnet20": (1.5, 2.0, 2.8), "mobilenetv2": (1.25, 1.5, 2.0)}
MIDDLE = 1
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Setting:
    """How to reconstruct; no steps are repair alone."""

    scope: str
    steps: int
    lr: float

    def __str__(self) -> str:
        return f"{self.scope}, {self.steps} steps, lr {self.lr:g}" if self.steps else "repair alone"


REPAIR = Setting("network", 0, 3e-3)
TRIED = (
    REPAIR,
    *(Setting(scope, 100, 3e-3) for scope in ("each", "blocks", "network")),
    Setting("network", 100, 1e-3),
    Setting("network", 100, 1e-2),
    Setting("blocks", 300, 3e-3),
    Setting("network", 300, 3e-3),
)
LONG = Setting("network", 1000, 3e-3)
"""Tried on the first network only: what more steps would give."""


@dataclass(frozen=True)
class Trial:
    """One setting, on the plan of one network and speed-up, looked at on one split."""

    network: str
    speedup: float
    setting: Setting
    split: str
    seed: int = 0

    @property
    def run(self) -> str:
        """Name of the run that holds the plan."""
        return f"{self.network}-{self.speedup:g}x"

    @property
    def row(self) -> Json:
        """What names it in a row of results."""
        return {**asdict(self), "setting": asdict(self.setting)}

    @staticmethod
    def of(row: Json) -> Trial:
        """Returns the trial that a row is about."""
        values = {f.name: row[f.name] for f in fields(Trial)}
        return Trial(**{**values, "setting": Setting(**row["setting"])})

    def opened(self) -> Run:
        """Returns the run under this setting; blocks are not merged, since nothing is trained."""
        values = {f"finetune.reconstruct.{k}": v for k, v in asdict(self.setting).items()}
        overrides = {**values, "finetune.train": "relaxed", "seed": self.seed}
        options = RunOptions(self.run, RUNS, None, overrides)
        return api.open_run(recipe(self.network), options, NullReporter())


def started(run: Run) -> tuple[RelaxedNet, float, bool]:
    """Returns the network, its seconds on a core, and whether a reconstruction was kept."""
    starts, plan = starts_of(run), run.plan  # everything is loaded before
    began = time.process_time()
    network, told = starts.start(plan)
    return network, time.process_time() - began, told is None or bool(told["kept"])


Look: TypeAlias = Callable[[Trial], Json]
"""A trial → what it came to."""


def recipe(network: str) -> Path:
    """Returns the recipe of a network."""
    return ROOT / "engines" / "recipes" / f"glyphs-{network}-cpu.yaml"


def plan(network: str) -> None:
    """Finds the plans of a network that are not there yet."""

    def perform(run: str, stages: tuple[str, ...], **overrides: object) -> None:
        for stage in stages:
            api.run_stage(stage, RunOptions(run, RUNS, recipe(network), dict(overrides)))

    perform(network, ("inspect", "latency", "importance"))
    for speedup in SPEEDUPS[network]:
        run = f"{network}-{speedup:g}x"
        if not (RUNS / run).exists():
            shutil.copytree(RUNS / network, RUNS / run)
        perform(run, ("search",), **{"search.speedup": speedup})


def measure(trial: Trial) -> Json:
    """Returns what a trial comes to."""
    run = trial.opened()
    network, seconds, kept = started(run)
    data, original = run.data(trial.split), run.session.model
    assert data is not None
    images = torch.split(images_of(data), 256)
    with torch.no_grad():
        distance = Distance.to([original(part) for part in images])
        divergence = distance.of(network(part) for part in images)
    return {
        **trial.row,
        "measured": run.plan.notes["measured_speedup"],
        "original": accuracy(original, data),
        "accuracy": accuracy(network, data),
        "divergence": divergence,
        "seconds": seconds,
        "kept": kept,
    }


def known(trial: Trial) -> Json:
    """Returns what a trial came to, measured if it was not yet."""
    if not TRIALS.exists():
        write_lines(TRIALS, KIND, {}, [])
    try:
        return looking(read_lines(TRIALS, KIND)[1])(trial)
    except KeyError:
        found = measure(trial)
        append_line(TRIALS, found)
        print(found, flush=True)
        return found


def looking(rows: list[Json]) -> Look:
    """Returns what looks trials up in rows; it raises ``KeyError`` for those that are not there."""
    return {Trial.of(row): row for row in rows}.__getitem__


def middle(setting: Setting) -> list[Trial]:
    """Returns the trials of a setting on ``val``, at the middle speed-up of each network."""
    networks = list(SPEEDUPS)[: 1 if setting == LONG else None]
    return [Trial(n, SPEEDUPS[n][MIDDLE], setting, "val") for n in networks]


def choice(look: Look) -> Setting:
    """Returns the setting whose answers diverge least, by the mean of both networks."""
    settings = [setting for setting in TRIED if setting.steps]
    return min(settings, key=lambda s: mean(look(trial)["divergence"] for trial in middle(s)))


def finals(chosen: Setting) -> Iterator[tuple[Trial, list[Trial]]]:
    """Yields repair alone and the chosen setting on ``test``, with three seeds in the middle."""
    for network, speedups in SPEEDUPS.items():
        for number, speedup in enumerate(speedups):
            seeds = SEEDS if number == MIDDLE else SEEDS[:1]
            yield (
                Trial(network, speedup, REPAIR, "test"),
                [Trial(network, speedup, chosen, "test", seed) for seed in seeds],
            )


def choice_table(look: Look) -> Iterator[str]:
    """Yields the lines of what was tried."""
    for setting in (*TRIED, LONG):
        rows = [look(trial) for trial in middle(setting)]
        cells = [
            f"{row['divergence']:.3f} | {row['accuracy']:.1%} | {row['seconds']:.0f}"
            for row in rows
        ]
        cells += ["not tried | |"] * (len(SPEEDUPS) - len(cells))
        yield f"| {setting} | {' | '.join(cells)} |"


def final_table(chosen: Setting, look: Look) -> Iterator[str]:
    """Yields the lines of the chosen setting."""
    for alone, trained in finals(chosen):
        first, rows = look(alone), [look(trial) for trial in trained]
        lost = [100 * (row["accuracy"] - row["original"]) for row in rows]
        each = ", ".join(f"{row['accuracy']:.1%}" for row in rows)
        yield (
            f"| {alone.network} | {first['measured']:.2f}x | {first['original']:.1%} "
            f"| {first['accuracy']:.1%} | {each} | {mean(lost):+.1f} "
            f"| {mean(row['seconds'] for row in rows):.0f} |"
        )


def text(header: Json, rows: list[Json]) -> str:
    """Returns the page."""
    look = looking(rows)
    chosen = choice(look)
    names = [f"{n} {x[MIDDLE]:g}x" for n, x in SPEEDUPS.items()]
    lines = [
        "# Less depth without labels and without fine-tuning",
        "",
        measured_by("bm_post_training", header),
        "",
        "One thread. Plans of the shipped recipes at three speed-ups each, measured on ONNX "
        "Runtime; blocks are fitted in sequence by least squares (*repair*), then trained by a "
        "few steps of Adam towards the original's values on the 2,000 shipped training images, "
        "whose labels are not used (`finetune: {preset: none, reconstruct: {...}}`). Batch 64, "
        "running statistics fixed. Seconds are those that repair and reconstruction spent on "
        "their core. 256 of the images are held out, to undo a reconstruction that does not "
        "help. The originals were trained on these very images, with labels, among 10,000 "
        "others; unseen ones may serve better or worse. A long fine-tuning by the original's "
        "answers alone, without labels too, goes further: [the demo's plan, "
        "trained](glyphs-demo.md).",
        "",
        "## Chosen on `val`, without its labels",
        "",
        "Mean KL divergence from the original's answers on 300 images, and the accuracy, which "
        "decided nothing (one image is 0.3 point). Seed 0.",
        "",
        "| setting | " + " | ".join(f"{n}: KL | accuracy | s" for n in names) + " |",
        "|---|" + "---|" * (3 * len(names)),
        *choice_table(look),
        "",
        "`each` trains one block after the other, as is usual for quantised blocks, `blocks` all "
        "changed blocks together, `network` everything with them. Where a block is a single "
        "convolution, least squares has already found its best before the activation, so `each` "
        "has little to add; what helps is that blocks, and what stands between them, correct each "
        "other.",
        "",
        f"Chosen: {chosen}, by the mean divergence of both networks.",
        "",
        "## On `test`, opened for that setting alone",
        "",
        "1,000 images; one is 0.1 point, the standard error about 0.8. In the middle, seeds 0, 1 "
        "and 2 draw other images to fit, to train on and to hold out, for the same plan; else seed "
        "0.",
        "",
        "| network | measured speed-up | original | repair alone, seed 0 | reconstructed | "
        "points, mean | s |",
        "|---|---|---|---|---|---|---|",
        *final_table(chosen, look),
    ]
    return "\n".join(lines) + "\n"


PAGE = Page(KIND, text)


def main() -> None:
    """Finds the plans, chooses on ``val``, opens ``test`` and writes the page."""
    torch.set_num_threads(1)
    for network in SPEEDUPS:
        plan(network)
    for setting in (*TRIED, LONG):
        for trial in middle(setting):
            known(trial)
    for alone, trained in finals(choice(known)):
        for trial in (alone, *trained):
            known(trial)
    PAGE.record({}, read_lines(TRIALS, KIND)[1])


if __name__ == "__main__":
    main()
