"""What decides the outcome of a session or a run: every value, its meaning, what it may be."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from trt_layermerge.core.device import Precision
from trt_layermerge.core.outputs import Task
from trt_layermerge.errors import UsageError
from trt_layermerge.importance.amounts import Effort
from trt_layermerge.kinds import kinds_named, usual_kinds

Count = Annotated[int, Field(ge=1)]

REFUSED: dict[str, str] = {
    "fp8": "fp8 needs a GPU of compute capability 8.9 or newer, and this version writes no fp8 "
    "scales; choose int8 or fp16",
    "bf16": "bf16 needs a GPU of compute capability 8.0 or newer, and this version does not type "
    "networks in it; choose fp16",
}
"""Precisions that TensorRT knows and this version does not, and why."""


def _known(precision: object) -> object:
    """Refuses a precision with its reason. Raises ``ValueError``."""
    if isinstance(precision, str) and precision in REFUSED:
        raise ValueError(REFUSED[precision])
    return precision


Supported: TypeAlias = Annotated[Precision, BeforeValidator(_known)]
"""``fp32``, ``fp16`` or ``int8``."""

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """A part of a recipe: frozen, without unknown keys, and without NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


ISOLATED = ("tensorrt", "tensorrt_rtx")
"""Backends that run in processes of their own: a network that crashes them costs one entry."""


class MeasureSection(Section):
    """How latency is measured.

    Attributes:
        backend: ``onnxruntime``, ``torch``, ``fake``, ``tensorrt`` or ``tensorrt_rtx``.
        precision: Precision of the measured and deployed network.
        batch: Images per run.
        rounds: Interleaved rounds of every measurement.
        networks: Whole networks measured to fit the block measurements to, at most: half of them
            will do where each is predicted well by the others (``measure.fit.SETTLED``).
        store: Where block measurements are kept between runs; the run's own folder by default.
        host: Where the device is, as ``ssh`` knows it; None for this machine.
        recorded: Whether latencies come from imported files only (``latency --import``).
    """

    backend: str = "onnxruntime"
    precision: Supported = "fp32"
    batch: Count = 1
    rounds: Annotated[int, Field(ge=3)] = 20
    networks: Annotated[int, Field(ge=0)] = 16
    store: str | None = None
    host: str | None = None
    recorded: bool = False

    @property
    def engines(self) -> bool:
        """Whether what is measured are engines, whose speed differs from build to build."""
        return self.backend in ISOLATED


class ImportanceSection(Section):
    """How the worth of a block is estimated.

    Attributes:
        method: ``calibrate`` (closed-form repair, then KL), ``finetune`` (the paper's protocol), or
            ``spectral``, for kinds whose weights tell what they leave out (``lowrank``): their
            errors, of which the worst in a plan counts (ALDS, NeurIPS 2021).
        effort: How much work ``calibrate`` may be. ``thorough`` scores every candidate on all
            images. ``normal``, some minutes, and ``quick`` do so for small networks; of large ones,
            every candidate gets a first look and those that the frontier may need are scored, on
            as many images as there is time for (``importance.amounts``).
        fit_images: Images to fit repairs on at most; taken from ``train``.
        score_images: Images to score on at most; taken from ``train``, disjoint from the others.
        finetune: Values that replace those of the preset ``importance``.
    """

    method: Literal["calibrate", "finetune", "spectral"] = "calibrate"
    effort: Effort = "normal"
    fit_images: Count = 512
    score_images: Count = 512
    finetune: dict[str, Any] = {}


class ObjectiveSection(Section):
    """What the search maximises (``search.solve.Objective``).

    Attributes:
        form: ``auto`` is ``exp`` under the paper's protocol, where untouched units are scored too
            and every block must be worth its place, ``worst`` for spectral errors, and ``delta``
            where untouched units count as 0.
        capacity: Reward for each convolution that keeps an activation.
    """

    form: Literal["auto", "delta", "exp", "worst"] = "auto"
    capacity: Annotated[float, Field(ge=0)] = 0.0


class LimitsSection(Section):
    """Bounds on candidates under ``rules: full`` (``kinds.Limits``).

    Attributes:
        max_units: Longest block, in units.
        max_kernel: Largest kernel of a merged convolution, per axis.
        kernels: Square kernels that are fitted.
    """

    max_units: Count = 6
    max_kernel: Count = 7
    kernels: tuple[Count, ...] = (1, 3, 5, 7)


def _named(names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns names of kinds, each once, in order. Raises ``ValueError``."""
    try:
        return tuple(kind.name for kind in kinds_named("full", names))
    except UsageError as error:
        raise ValueError(str(error)) from None


class SearchSection(Section):
    """What is looked for. Exactly one of ``speedup`` and ``budget_ms`` counts; the latter wins.

    Attributes:
        rules: Which replacements there are: ``full`` for all kinds, ``paper`` for the published.
        mode: What may go: ``layermerge`` for activations and convolutions, ``depth`` for
            activations only, ``layer`` for convolutions only.
        kinds: Names of the kinds of candidates (``kinds``) under ``rules: full``; ``narrow`` and
            ``stream`` are used only where they are named.
        speedup: Measured original latency divided by the budget.
        budget_ms: Latency that the measured network must meet.
        objective: What is maximised.
        limits: Bounds on candidates.
        finalists: Plans built whole and measured in each round of the loop.
        loops: Rounds of the loop at most.
        samples: Plans drawn around the best ones, repaired and scored whole; those that lose least
            together are measured too. 0 draws none.
        race_steps: Steps of one rung of the race (``search.race``), at most an epoch and a
            twentieth of the training: the best finalists are trained a little, and the one that
            learns most is taken. 0 takes the one that loses least before any training.
        headroom: Share of the budget that the measured network must stay below it, since the next
            measurement will differ a little.
    """

    rules: Literal["paper", "full"] = "full"
    mode: Literal["layermerge", "depth", "layer"] = "layermerge"
    kinds: Annotated[tuple[str, ...], AfterValidator(_named)] = Field(
        default_factory=usual_kinds, min_length=1
    )
    speedup: Annotated[float, Field(gt=1)] = 1.5
    budget_ms: Positive | None = None
    objective: ObjectiveSection = ObjectiveSection()
    limits: LimitsSection = LimitsSection()
    finalists: Count = 4
    loops: Count = 4
    samples: Annotated[int, Field(ge=0)] = 16
    race_steps: Annotated[int, Field(ge=0)] = 100
    headroom: Annotated[float, Field(ge=0, lt=1)] = 0.02


class ReconstructSection(Section):
    """Training of changed blocks towards the original's values (``merge.reconstruct``), unlabelled.

    Attributes:
        steps: Steps of Adam; 0 for none.
        lr: Peak learning rate.
        batch: Images a step.
        images: How many to draw from ``train``; a quarter of them, 256 at most, is held out.
        scope: ``each`` block after the other, all changed ``blocks`` together, or the ``network``.
    """

    steps: Annotated[int, Field(ge=0)] = 0
    lr: Positive = 3e-3
    batch: Count = 64
    images: Annotated[int, Field(ge=2)] = 2048
    scope: Literal["each", "blocks", "network"] = "network"


class FinetuneSection(Section):
    """How the network of the plan is trained.

    Attributes:
        preset: Name of a recipe (``finetune.recipe.PRESETS``), or ``none`` for no training, which
            needs no labels: depth's counterpart of post-training quantisation.
        start: ``repair`` fits every block in closed form first; ``original`` is the paper's start.
        train: ``relaxed`` trains a block's kept convolutions one by one and merges them last, as
            the paper does; ``collapsed`` merges them first, with a BN behind that starts as an
            identity; ``auto`` is ``collapsed`` after a repair and ``relaxed`` without one.
        anneal: Share of the training over which removed activations become the identity; 0 takes
            them out at once.
        reconstruct: What comes between start and training.
        options: Values that replace those of the preset.
    """

    preset: str = "short"
    start: Literal["repair", "original"] = "repair"
    train: Literal["auto", "relaxed", "collapsed"] = "auto"
    anneal: Fraction = 0.0
    reconstruct: ReconstructSection = ReconstructSection()
    options: dict[str, Any] = {}

    @property
    def collapsed(self) -> bool:
        """Whether blocks are merged before the training."""
        return self.train == "collapsed" or (self.train == "auto" and self.start == "repair")

    @model_validator(mode="after")
    def _anneals_something(self) -> FinetuneSection:
        if self.anneal and (self.start == "repair" or self.collapsed):
            raise ValueError(
                "anneal needs start: original and train: relaxed, since repaired and collapsed "
                "blocks are linear from the start"
            )
        if self.anneal and self.preset == "none":
            raise ValueError("anneal needs a training; choose another preset than none")
        return self


class ScaleSection(Section):
    """Which processes score candidates; of no effect on the scores.

    Attributes:
        workers: How many; 1 is this process, more need Ray.
        ray: Address of a Ray cluster (``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``); None starts
            the workers on this machine.
        threads: Threads of each worker; None for an equal share of the processors.
    """

    workers: Count = 1
    ray: str | None = None
    threads: Count | None = None


class CalibrateSection(Section):
    """How int8 is calibrated; of no effect where nothing is int8.

    Attributes:
        preset: YAML file (``calib/presets``); None for the built-in values.
        options: Values that replace those of the preset.
        qat_epochs: Epochs of training the merged network with int8's rounding simulated.
    """

    preset: str | None = None
    options: dict[str, Any] = {}
    qat_epochs: Annotated[int, Field(ge=0)] = 0


class EngineOptions(Section):
    """How TensorRT builds (``backends.tensorrt_options.BuildOptions``).

    Attributes:
        workspace_mib: Memory for intermediate results; None for what is free.
        optimization_level: 0 (built quickly) to 5 (runs quickly); None for TensorRT's own.
        tf32: Whether single precision may round factors to 10 bits of mantissa.
        hardware_compatible: Whether the engine runs on newer GPUs too.
        version_compatible: Whether the engine runs on newer versions of TensorRT too.
        free_io_formats: Whether inputs and outputs may be laid out as is fastest.
    """

    workspace_mib: Count | None = None
    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = None
    tf32: bool = False
    hardware_compatible: bool = False
    version_compatible: bool = False
    free_io_formats: bool = False

    def for_builder(self) -> dict[str, Any]:
        """Returns the same under the names that ``BuildOptions`` has, JSON-ready."""
        mib = self.workspace_mib
        rest = self.model_dump(exclude={"workspace_mib"})
        return {"workspace_bytes": None if mib is None else mib << 20, **rest}


class BuildSection(Section):
    """Which engines are built.

    Attributes:
        precisions: One engine for each.
        engine: ``auto`` takes TensorRT if it is installed, else TensorRT-RTX; ``none`` builds none.
        max_batch: Largest batch of an engine that takes any; None fixes it to the measured one.
        options: How they are built.
    """

    precisions: tuple[Supported, ...] = ("fp32", "fp16")
    engine: Literal["auto", "tensorrt", "tensorrt_rtx", "none"] = "auto"
    max_batch: Count | None = None
    options: EngineOptions = EngineOptions()


class Settings(Section):
    """Everything that decides what a session does, beside the network and its data.

    Attributes:
        measure: How latency is measured.
        search: What is looked for.
        importance: How the worth of a block is estimated.
        finetune: How the network of the plan is trained.
        calibrate: How int8 is calibrated.
        build: Which engines are built.
        scale: Which processes score candidates.
        task: What the outputs are for, which decides how answers are compared (``core.outputs``):
            ``auto`` (by their shapes), ``classification``, ``segmentation``, ``multilabel`` or
            ``regression``; or one of these for some outputs by name.
        device: Name of the torch device that trains, repairs, scores and verifies.
        seed: Of everything random.
    """

    measure: MeasureSection = MeasureSection()
    search: SearchSection = SearchSection()
    importance: ImportanceSection = ImportanceSection()
    finetune: FinetuneSection = FinetuneSection()
    calibrate: CalibrateSection = CalibrateSection()
    build: BuildSection = BuildSection()
    scale: ScaleSection = ScaleSection()
    task: Task | dict[str, Task] = "auto"
    device: str = "cpu"
    seed: Seed = 0

    @model_validator(mode="after")
    def _errors_are_told(self) -> Settings:
        kinds = kinds_named("full", self.search.kinds)
        mute = [kind.name for kind in kinds if not kind.spectral]
        if self.importance.method == "spectral" and mute:
            raise ValueError(
                "importance.method spectral scores by weights alone, which do not tell what "
                f"{', '.join(mute)} would lose; leave them out (search.kinds: [lowrank])"
            )
        return self

    @model_validator(mode="after")
    def _batches_fit(self) -> Settings:
        largest, measured = self.build.max_batch, self.measure.batch
        if largest is not None and largest < measured:
            raise ValueError(
                f"build.max_batch is {largest}, less than the measured batch of {measured}"
            )
        return self
