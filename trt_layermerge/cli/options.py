"""The options that verbs share, in groups that verbs inherit from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer

from trt_layermerge.cli.verb import Key, Settings
from trt_layermerge.errors import UsageError

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


def _option(help_text: str, *names: str, panel: str | None = None, **settings: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, **settings)


_MODEL = "Model and data"
_MACHINE = "Where and how"
_OUTPUT = "Output"
_GOAL = "Goal"


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is printed."""

    as_json: Annotated[
        bool, _option("Print the result as JSON; logs go to stderr.", "--json", panel=_OUTPUT)
    ] = False
    verbose: Annotated[
        int,
        _option(
            "Say more; twice: tracebacks too.",
            "--verbose",
            "-v",
            panel=_OUTPUT,
            count=True,
            show_default=False,
        ),
    ] = 0
    quiet: Annotated[
        bool, _option("Say nothing but results and errors.", "--quiet", "-q", panel=_OUTPUT)
    ] = False

    @property
    def verbosity(self) -> int:
        """0 normal, more with ``-v``, -1 with ``-q``."""
        return -1 if self.quiet else self.verbose


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which network, and which data."""

    model: Annotated[
        str | None,
        _option(
            "timm:NAME, torchvision:NAME, PACKAGE.MODULE:FACTORY, FILE.py:FACTORY or FILE.onnx.",
            panel=_MODEL,
        ),
        Key("model.name"),
    ] = None
    weights: Annotated[
        str | None,
        _option("Weights: safetensors, or a checkpoint of plain tensors.", panel=_MODEL),
        Key("model.weights"),
    ] = None
    input: Annotated[
        str | None,
        _option("Shape of the input, like 1x3x224x224.", panel=_MODEL),
        Key("model.input", shape),
    ] = None
    train: Annotated[
        str | None,
        _option(
            "Training data: imagefolder:DIR, images:DIR, npz:FILE, hf:DIR or FILE.py:FACTORY.",
            panel=_MODEL,
        ),
        Key("data.train"),
    ] = None
    val: Annotated[
        str | None,
        _option("Data to choose a plan and to watch its training by.", panel=_MODEL),
        Key("data.val"),
    ] = None
    test: Annotated[
        str | None,
        _option("Data that only the final figures see.", panel=_MODEL),
        Key("data.test"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """Where it runs, and at which precision."""

    runs_dir: Annotated[Path, _option("Folder of all runs.", panel=_MACHINE)] = Path("runs")
    seed: Annotated[
        int | None, _option("Seed of everything random.", panel=_MACHINE), Key("seed")
    ] = None
    device: Annotated[
        str | None,
        _option("Where torch computes: cpu, cuda, cuda:1.", panel=_MACHINE),
        Key("device"),
    ] = None
    backend: Annotated[
        BackendName | None,
        _option(
            "What measures and runs the network: onnxruntime, tensorrt, tensorrt_rtx, torch, fake.",
            panel=_MACHINE,
            metavar="NAME",
        ),
        Key("measure.backend"),
    ] = None
    precision: Annotated[
        str | None,
        _option("Precision of the deployed network.", panel=_MACHINE, metavar=PRECISIONS),
        Key("measure.precision"),
    ] = None
    batch: Annotated[
        int | None,
        _option("Batch size that latency is measured at.", panel=_MACHINE, min=1),
        Key("measure.batch"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class GoalOptions:
    """How fast, and by which means."""

    budget_ms: Annotated[
        float | None,
        _option("Latency that the whole network must meet, in ms.", panel=_GOAL),
        Key("search.budget_ms"),
    ] = None
    speedup: Annotated[
        float | None,
        _option("The same as a factor, like 1.5.", panel=_GOAL),
        Key("search.speedup"),
    ] = None
    mode: Annotated[
        Literal["layermerge", "depth", "layer"] | None,
        _option("What may go: both, activations only, convolutions only.", panel=_GOAL),
        Key("search.mode"),
    ] = None
    rules: Annotated[
        Literal["paper", "full"] | None,
        _option("Which blocks and candidates exist.", panel=_GOAL),
        Key("search.rules"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class RecipeKeyOptions:
    """Whatever of the recipe has no option of its own."""

    settings: Annotated[
        list[str] | None,
        _option(
            "Any key of the recipe, like search.finalists=6; repeatable.",
            "--set",
            metavar="KEY=VALUE",
        ),
        Settings(),
    ] = None


@dataclass(frozen=True, kw_only=True)
class SharedOptions(ModelOptions, MachineOptions, OutputOptions, RecipeKeyOptions):
    """What every verb that works on a run understands."""


@dataclass(frozen=True, kw_only=True)
class StageOptions(SharedOptions):
    """What every single stage understands."""

    run: Annotated[str, _option("Name of the run, new or begun.", show_default=False)]
    recipe: Annotated[
        Path | None, _option("Recipe of a new run; a begun one remembers its own.")
    ] = None
