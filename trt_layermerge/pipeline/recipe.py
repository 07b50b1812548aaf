"""A recipe: everything that decides the outcome of a run, checked when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from os.path import normpath
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trt_layermerge.core.jsonio import Json
from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.errors import CorruptInputError, UsageError

PRETRAINED = "pretrained"

Count = Annotated[int, Field(ge=1)]
Supported: TypeAlias = Literal["fp32", "fp16"]
"""INT8 needs calibration, which this version does not have."""

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """A part of a recipe: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSection(Section):
    """Which network.

    Attributes:
        name: ``timm:NAME``, ``torchvision:NAME``, ``PACKAGE.MODULE:FACTORY`` or
            ``FILE.py:FACTORY``.
        weights: A safetensors file, a checkpoint that loads with ``weights_only=True``, or
            ``pretrained``: the library's own, fetched if they are not cached; None for random.
        input: Shape of the input, ``[N, C, H, W]``.
    """

    name: str
    weights: str | None = None
    input: tuple[Count, Count, Count, Count] = (1, 3, 224, 224)


class PreprocessSection(Section):
    """``y = (x · scale − mean) / std`` on 8-bit RGB."""

    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)

    def build(self) -> Preprocess:
        """Returns the preprocessing itself."""
        return Preprocess(self.scale, self.mean, self.std)


class DataSection(Section):
    """Which images: ``npz:FILE``, ``imagefolder:DIR`` or ``FILE.py:FACTORY``.

    Attributes:
        train: Images to fit, score and train on.
        val: Images to choose settings by; only reported, never trained on.
        test: Images for the final accuracy; opened once, at the end.
        preprocess: From pixels to the network's input.
    """

    train: str | None = None
    val: str | None = None
    test: str | None = None
    preprocess: PreprocessSection = PreprocessSection()


class MeasureSection(Section):
    """How latency is measured.

    Attributes:
        backend: ``onnxruntime``, ``torch``, ``fake``, ``tensorrt`` or ``tensorrt_rtx``.
        precision: Precision of the measured and deployed network.
        batch: Images per run.
        rounds: Interleaved rounds of every measurement.
        networks: Whole networks measured to fit the block measurements to.
        store: Where block measurements are kept between runs; the run's own folder by default.
    """

    backend: str = "onnxruntime"
    precision: Supported = "fp32"
    batch: Count = 1
    rounds: Annotated[int, Field(ge=3)] = 20
    networks: Annotated[int, Field(ge=0)] = 16
    store: str | None = None


class ImportanceSection(Section):
    """How the worth of a block is estimated.

    Attributes:
        method: ``calibrate`` (closed-form repair, then KL) or ``finetune`` (the paper's protocol).
        fit_images: Images to fit repairs on; taken from ``train``.
        score_images: Images to score on; taken from ``train``, disjoint from the others.
        finetune: Values that replace those of the preset ``importance``.
    """

    method: Literal["calibrate", "finetune"] = "calibrate"
    fit_images: Count = 512
    score_images: Count = 512
    finetune: dict[str, Any] = {}


class ObjectiveSection(Section):
    """What the search maximises (``search.solve.Objective``).

    Attributes:
        form: ``auto`` is ``exp`` under the paper's protocol, where untouched units are scored too
            and every block must be worth its place, and ``delta`` where they count as 0.
        capacity: Reward for each convolution that keeps an activation.
    """

    form: Literal["auto", "delta", "exp"] = "auto"
    capacity: Annotated[float, Field(ge=0)] = 0.0


class LimitsSection(Section):
    """Bounds on candidates under ``rules: full`` (``search.limits.Limits``)."""

    max_units: Count = 6
    max_kernel: Count = 7
    kernels: tuple[Count, ...] = (1, 3, 5, 7)


class SearchSection(Section):
    """What is looked for. Exactly one of ``speedup`` and ``budget_ms`` counts; the latter wins.

    Attributes:
        rules: ``paper`` or ``full``.
        mode: ``layermerge``, ``depth`` or ``layer``.
        speedup: Measured original latency divided by the budget.
        budget_ms: Latency that the measured network must meet.
        objective: What is maximised.
        limits: Bounds on candidates.
        finalists: Plans built whole and measured in each round of the loop.
        loops: Rounds of the loop at most.
        headroom: Share of the budget that the measured network must stay below it, since the next
            measurement will differ a little.
    """

    rules: Literal["paper", "full"] = "full"
    mode: Literal["layermerge", "depth", "layer"] = "layermerge"
    speedup: Annotated[float, Field(gt=1)] = 1.5
    budget_ms: Positive | None = None
    objective: ObjectiveSection = ObjectiveSection()
    limits: LimitsSection = LimitsSection()
    finalists: Count = 4
    loops: Count = 4
    headroom: Annotated[float, Field(ge=0, lt=1)] = 0.02


class FinetuneSection(Section):
    """How the relaxed network is trained.

    Attributes:
        preset: Name of a recipe (``finetune.recipe.PRESETS``), or ``none`` for no training.
        start: ``repair`` fits every block in closed form first; ``original`` is the paper's start.
        options: Values that replace those of the preset.
    """

    preset: str = "short"
    start: Literal["repair", "original"] = "repair"
    options: dict[str, Any] = {}


class BuildSection(Section):
    """Which engines are built.

    Attributes:
        precisions: One engine for each.
        engine: ``auto`` takes TensorRT if it is installed, else TensorRT-RTX; ``none`` builds none.
    """

    precisions: tuple[Supported, ...] = ("fp32", "fp16")
    engine: Literal["auto", "tensorrt", "tensorrt_rtx", "none"] = "auto"


class VerifySection(Section):
    """Gates: exceeding one ends with its exit code.

    Attributes:
        max_accuracy_drop: Largest loss of accuracy on ``test``, as a fraction; None for no gate.
        never_slower: Whether a merged network that is slower than the original at the same
            precision, beyond the spread of the rounds, fails.
        max_latency_ms: Most that the merged network may take at the measured precision, in the
            median; None for no gate.
    """

    max_accuracy_drop: Fraction | None = None
    never_slower: bool = True
    max_latency_ms: Positive | None = None


class Recipe(Section):
    """One run, from the trained network to the report."""

    model: ModelSection
    data: DataSection = DataSection()
    measure: MeasureSection = MeasureSection()
    search: SearchSection = SearchSection()
    importance: ImportanceSection = ImportanceSection()
    finetune: FinetuneSection = FinetuneSection()
    build: BuildSection = BuildSection()
    verify: VerifySection = VerifySection()
    device: str = "cpu"
    seed: Seed = 0


def load_recipe(path: Path | None, overrides: Mapping[str, Any]) -> Recipe:
    """Returns the recipe of a YAML file with values by dotted key replaced.

    Paths in the file are relative to its folder; paths in overrides to the working directory.

    Raises:
        UsageError: If there is no such file, or a value cannot be used.
        CorruptInputError: If the file is not YAML.
    """
    body: Json = {} if path is None else _read(path)
    if path is not None:
        _anchor(body, path.parent.resolve())
    given: Json = {}
    for key, value in overrides.items():
        _put(given, key, value)
        if key == "search.speedup" and "search.budget_ms" not in overrides:
            _put(given, "search.budget_ms", None)
    _anchor(given, Path.cwd())
    _merge(body, given)
    try:
        return Recipe.model_validate(body)
    except ValidationError as error:
        raise UsageError(_explain(error, path)) from error


def dump_recipe(recipe: Recipe) -> str:
    """Returns a recipe as YAML that ``load_recipe`` reads back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def _read(path: Path) -> Json:
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"there is no recipe {path}; type the path of a YAML file") from error
    except OSError as error:
        raise UsageError(f"cannot read the recipe {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        words = " ".join(str(error).split())
        raise CorruptInputError(f"the recipe {path} is not valid YAML: {words}") from error
    if not isinstance(body, dict):
        raise CorruptInputError(f"the recipe {path} is not a mapping of sections")
    return body


def _put(body: Json, dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        body = body.setdefault(section, {})
    body[key] = value


def _merge(body: Json, given: Json) -> None:
    """Writes ``given`` into ``body``, section by section."""
    for key, value in given.items():
        if isinstance(value, dict) and isinstance(body.get(key), dict):
            _merge(body[key], value)
        else:
            body[key] = value


_PATHS = {"model": ("name", "weights"), "data": ("train", "val", "test"), "measure": ("store",)}


def _anchor(body: Json, folder: Path) -> None:
    """Makes the paths of a recipe absolute, so that the run's copy means the same files."""
    for section, keys in _PATHS.items():
        part = body.get(section)
        if not isinstance(part, dict):
            continue
        for key in keys:
            if isinstance(value := part.get(key), str):
                part[key] = _absolute(value, folder, bare=key in ("weights", "store"))


def _absolute(value: str, folder: Path, *, bare: bool) -> str:
    """Returns ``npz:FILE``, ``imagefolder:DIR``, ``FILE.py:NAME`` or ``FILE`` with a full path."""
    scheme, colon, rest = value.partition(":")
    if bare:
        return value if value == PRETRAINED else normpath(folder / value)
    if scheme in ("npz", "imagefolder"):
        return f"{scheme}:{normpath(folder / rest)}"
    if scheme.endswith(".py") and colon:
        return f"{normpath(folder / scheme)}:{rest}"
    return value


def _explain(error: ValidationError, path: Path | None) -> str:
    where = f"the recipe {path}" if path else "the options"
    faults = [
        f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg'].lower()}"
        for fault in error.errors(include_url=False)
    ]
    return f"{where} cannot be used: {'; '.join(faults[:5])}"
