"""The options that verbs share, in groups that verbs inherit from."""

from __future__ import annotations

import os
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from trt_layermerge.cli.verb import SETTINGS, option
from trt_layermerge.errors import UsageError

RUNS = Path("runs")

BackendName: TypeAlias = Literal["onnxruntime", "tensorrt", "tensorrt_rtx", "torch", "fake"]

PRECISIONS = "[fp32|fp16|int8]"
"""Shown only: the recipe knows why others are refused."""


def shape(text: str) -> list[int]:
    """Returns a shape typed as ``1x3x224x224``.

    Raises:
        UsageError: If it is not four positive sizes.
    """
    sizes = [int(part) if part.isdecimal() else 0 for part in text.lower().split("x")]
    if len(sizes) != 4 or 0 in sizes:
        raise UsageError(f"--input {text!r} is not a shape; type it like --input 1x3x224x224")
    return sizes


def factors(text: str) -> float | list[float]:
    """Returns a speed-up typed as ``1.5``, or several as ``1.25,1.5,2``.

    Raises:
        UsageError: If one is no number.
    """
    try:
        found = [float(part.removesuffix("x")) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--speedup {text!r} is no factor; type it like --speedup 1.5, or several like "
            "--speedup 1.25,1.5,2"
        ) from error
    return found[0] if len(found) == 1 else found


def run_at(run: str, runs_dir: Path) -> tuple[str, Path]:
    """Returns name and folder of a run that is typed by its name, or by a path to it.

    Raises:
        UsageError: If a path and ``--runs-dir`` are typed.
    """
    if run != "." and os.sep not in run:
        return run, runs_dir
    if runs_dir != RUNS:
        raise UsageError(
            f"{run} is the path of a run, and {runs_dir} (--runs-dir) says where it is; type a "
            "name with --runs-dir, or the path alone"
        )
    place = Path(os.path.abspath(run))
    return place.name, place.parent


_MODEL = "Model and data"
_MACHINE = "Where and how"
_OUTPUT = "Output"
_GOAL = "Goal"


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is printed."""

    as_json: bool = option(
        "Print the result as JSON; logs go to stderr.", "--json", default=False, panel=_OUTPUT
    )
    verbose: int = option(
        "Say more; twice: tracebacks too.",
        "--verbose",
        "-v",
        default=0,
        panel=_OUTPUT,
        count=True,
        show_default=False,
    )
    quiet: bool = option(
        "Say nothing but results and errors.", "--quiet", "-q", default=False, panel=_OUTPUT
    )

    @property
    def verbosity(self) -> int:
        """0 normal, more with ``-v``, -1 with ``-q``."""
        return -1 if self.quiet else self.verbose


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which network, and which data."""

    model: str | None = option(
        "timm:NAME, torchvision:NAME, PACKAGE.MODULE:FACTORY, FILE.py:FACTORY or FILE.onnx.",
        key="model.name",
        panel=_MODEL,
    )
    weights: str | None = option(
        "Weights: safetensors, or a checkpoint of plain tensors.", key="model.weights", panel=_MODEL
    )
    input: str | None = option(
        "Shape of the input, like 1x3x224x224.", key="model.input", convert=shape, panel=_MODEL
    )
    outputs: str | None = option(
        "Tensors that an ONNX file is cut at, like NAME,NAME.",
        key="model.outputs",
        convert=lambda text: text.split(","),
        panel=_MODEL,
    )
    train: str | None = option(
        "Training data: imagefolder:DIR, images:DIR, npz:FILE, hf:DIR or FILE.py:FACTORY.",
        key="data.train",
        panel=_MODEL,
    )
    val: str | None = option(
        "Data to choose a plan and to watch its training by.", key="data.val", panel=_MODEL
    )
    test: str | None = option(
        "Data that only the final figures see.", key="data.test", panel=_MODEL
    )


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """Where it runs, and at which precision."""

    runs_dir: Path = option("Folder of all runs.", default=RUNS, panel=_MACHINE)
    seed: int | None = option("Seed of everything random.", key="seed", panel=_MACHINE)
    device: str | None = option(
        "Where torch computes: cpu, cuda, cuda:1.", key="device", panel=_MACHINE
    )
    backend: BackendName | None = option(
        "What measures and runs the network: onnxruntime, tensorrt, tensorrt_rtx, torch, fake.",
        key="measure.backend",
        panel=_MACHINE,
        metavar="NAME",
    )
    precision: str | None = option(
        "Precision of the deployed network.",
        key="measure.precision",
        panel=_MACHINE,
        metavar=PRECISIONS,
    )
    batch: int | None = option(
        "Batch size that latency is measured at.", key="measure.batch", panel=_MACHINE, min=1
    )


@dataclass(frozen=True, kw_only=True)
class GoalOptions:
    """How fast, and by which means."""

    budget_ms: float | None = option(
        "Latency that the whole network must meet, in ms.", key="search.budget_ms", panel=_GOAL
    )
    speedup: str | None = option(
        "The same as a factor, like 1.5; of several, like 1.25,1.5,2, each gets a run of its own.",
        key="search.speedup",
        convert=factors,
        metavar="FACTOR",
        panel=_GOAL,
    )
    mode: Literal["layermerge", "depth", "layer"] | None = option(
        "What may go: both, activations only, convolutions only.", key="search.mode", panel=_GOAL
    )
    rules: Literal["paper", "full"] | None = option(
        "Which blocks and candidates exist.", key="search.rules", panel=_GOAL
    )


@dataclass(frozen=True, kw_only=True)
class RecipeKeyOptions:
    """Whatever of the recipe has no option of its own."""

    settings: list[str] | None = option(
        "Any key of the recipe, like search.finalists=6; repeatable.",
        "--set",
        key=SETTINGS,
        metavar="KEY=VALUE",
    )


@dataclass(frozen=True, kw_only=True)
class SharedOptions(ModelOptions, MachineOptions, OutputOptions, RecipeKeyOptions):
    """What every verb that works on a run understands."""


@dataclass(frozen=True, kw_only=True)
class StageOptions(SharedOptions):
    """What every single stage understands."""

    run: str = option(
        "Name of the run, new or begun, or a path to its folder.",
        default=MISSING,
        show_default=False,
    )
    recipe: Path | None = option("Recipe of a new run; a begun one remembers its own.")
