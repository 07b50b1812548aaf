"""What the arms of a study have in common: networks, images, effort, tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.studies.arms import ARMS, Arm, Tables
from trt_layermerge.core.jsonio import Json, sha256_file
from trt_layermerge.core.unit import Rules
from trt_layermerge.data import LabelledData
from trt_layermerge.pipeline import api
from trt_layermerge.pipeline.options import NullReporter, Reporter, RunOptions
from trt_layermerge.pipeline.recipe import Recipe
from trt_layermerge.pipeline.run import Run
from trt_layermerge.session.images import calibration_of
from trt_layermerge.session.starts import Starts

ROOT = Path(__file__).parents[2]

SPLITS = ("train", "val", "test")

JUDGE_SHARE = 6
"""One image in so many is held out to judge an entry under the paper's protocol."""

STEPS = 100
"""Optimiser steps of one entry under the paper's protocol, about; its own epoch has 195."""

PAPER_BATCH, PAPER_LR = 64, 0.025
"""Its batch of 256 and rate of 0.1, scaled down together so that a small set gives enough steps."""


@dataclass(frozen=True)
class Network:
    """A trained network to make faster.

    Attributes:
        name: What it is called in tables.
        recipe: The recipe that says where it is, and how it is measured and trained.
        epochs: Passes of every training.
    """

    name: str
    recipe: Path
    epochs: int


NETWORKS = (
    Network("resnet20", ROOT / "engines" / "recipes" / "glyphs-resnet20-cpu.yaml", 100),
    Network("mobilenet_v2", ROOT / "engines" / "recipes" / "glyphs-mobilenetv2-cpu.yaml", 30),
)


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome of a study.

    Attributes:
        work: Folder of tables, weights and results.
        networks: What is made faster.
        arms: The methods.
        speedups: Measured speed-ups of whole networks.
        seeds: Seeds of training, and of the random plans.
        rates: Learning rates that every arm may choose from.
        data: Folder of ``train.npz``, ``val.npz`` and ``test.npz``; None for those of the recipes.
        changes: Further values by dotted recipe key, for all networks.
    """

    work: Path
    networks: tuple[Network, ...] = NETWORKS
    arms: tuple[Arm, ...] = tuple(arm for arm in ARMS if arm.default)
    speedups: tuple[float, ...] = (1.5, 2.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (0.002, 0.006, 0.018)
    data: Path | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    def network(self, name: str) -> Network:
        """Returns the network of that name."""
        return next(n for n in self.networks if n.name == name)

    def speedups_of(self, arm: Arm) -> tuple[float, ...]:
        """Returns what an arm is asked for: nothing, where it replaces nothing."""
        return (1.0,) if arm.mode == "untouched" else self.speedups

    def identity(self) -> Json:
        """Returns what results that stand in one file must have in common."""
        return {"rates": list(self.rates), "changes": dict(self.changes)}

    def facts(self, network: Network) -> Json:
        """Returns what the results of a network depend on besides: its effort and its images."""
        recipe = run_of(self, network, "full").recipe
        files = {s: Path(str(getattr(recipe.data, s)).partition(":")[2]) for s in SPLITS}
        return {
            "network": network.name,
            "recipe": network.recipe.name,
            "recipe_sha256": sha256_file(network.recipe),
            "weights_sha256": sha256_file(Path(str(recipe.model.weights))),
            "epochs": network.epochs,
            "data_sha256": {split: sha256_file(path) for split, path in files.items()},
        }


def overrides(settings: Settings, tables: Tables) -> dict[str, Any]:
    """Returns what a study changes in a network's recipe, by dotted key."""
    rules: Rules = "paper" if tables == "paper" else "full"
    method = {"full": "calibrate", "paper": "finetune", "spectral": "spectral"}[tables]
    changed: dict[str, Any] = {
        **settings.changes,
        "search.rules": rules,
        "search.headroom": 0.0,
        "measure.store": str(settings.work / "latency.sqlite"),
        "importance.method": method,
        "build.engine": "none",
    }
    if tables == "spectral":
        changed["search.kinds"] = ["lowrank"]
    if settings.data is not None:
        for split in SPLITS:
            changed[f"data.{split}"] = f"npz:{settings.data / split}.npz"
    return changed


def run_of(
    settings: Settings, network: Network, tables: Tables, reporter: Reporter | None = None
) -> Run:
    """Returns the run that holds a network's tables; what it lacks is made by its stages."""
    options = RunOptions(
        f"{network.name}-{tables}", settings.work, network.recipe, overrides(settings, tables)
    )
    run = api.open_run(network.recipe, options, reporter or NullReporter())
    return replace(run, recipe=published(run.recipe, len(run.train))) if tables == "paper" else run


def published(recipe: Recipe, images: int) -> Recipe:
    """Returns a recipe that scores by the paper's protocol, sized for so many training images.

    One entry is trained for about ``STEPS`` steps. Letters must neither be flipped nor cut, so
    shifts by two pixels take the place of the paper's crops and flips.
    """
    judge = images // JUDGE_SHARE
    batch = min(PAPER_BATCH, images - judge)
    epochs = max(1, round(STEPS * batch / (images - judge)))
    changes = {"epochs": epochs, "batch": batch, "lr": PAPER_LR, "augment": ["shift:2"]}
    section = recipe.importance
    section = section.model_copy(
        update={
            "method": "finetune",
            "score_images": judge,
            "finetune": {**changes, **section.finetune},
        }
    )
    return recipe.model_copy(update={"importance": section})


def calibration(run: Run) -> tuple[LabelledData, LabelledData]:
    """Returns the training images that repairs are fitted on, and those that they are scored on."""
    section = run.recipe.importance
    return calibration_of(run.train, section.fit_images, section.score_images, run.seed)


def starts_of(run: Run) -> Starts:
    """Returns what makes the networks of plans as their training finds them."""
    session, fit = run.session, calibration(run)[0]
    return Starts(
        session.model, session.graph, session.importance, fit, run.train, run.recipe, session.tell
    )
