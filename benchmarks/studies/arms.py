"""The methods that a study compares: what each may choose, and how its plans are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trt_layermerge.search import Mode

Tables = Literal["full", "paper", "spectral"]
"""Which tables an arm chooses from: all rules scored by ``calibrate``, the published ones, or
splits of low rank and what their weights leave out."""

Criterion = Literal["magnitude", "taylor", "uniform"]
"""By what channels are dropped: group magnitude or group Taylor, ranked globally within isomorphic
groups (ECCV 2024), or group magnitude with the same share of every group."""

TODAY = ("compose", "fit", "identity")
"""Kinds of candidates that the published study had."""

Start = Literal["repair", "original"]


@dataclass(frozen=True)
class Course:
    """How a plan becomes a finished network.

    Attributes:
        about: One sentence for the page.
        section: Values of the recipe's ``finetune`` section; its ``options`` are added to those of
            the recipe.
        rates: Learning rates to choose from; None for those of the study.
    """

    about: str
    section: Mapping[str, Any]
    rates: tuple[float, ...] | None = None

    @property
    def start(self) -> Start:
        """What it starts with."""
        found: Start = self.section["start"]
        return found


RECONSTRUCT = {"reconstruct": {"steps": 300}}
UNMIXED = ["affine:10", "shift:2", "permute:1", "invert:0.5"]
"""Augmentation without mixup, whose images no label fits."""

UNLABELLED = {"options": {"distill_weight": 1.0, "augment": [*UNMIXED, "mixup:0.5"]}}
LABELLED = {"options": {"distill_weight": 0.5, "augment": UNMIXED}}
REPAIR: Mapping[str, Any] = {"start": "repair", **UNLABELLED}
ORIGINAL: Mapping[str, Any] = {"start": "original", **UNLABELLED}

COURSES: Mapping[str, Course] = {
    "repair": Course(
        "Repaired and merged, identity-start BN behind, then trained by the original's answers "
        "alone: no labels.",
        REPAIR,
    ),
    "original": Course("Original weights, the paper's start; then as `repair`.", ORIGINAL),
    "annealed": Course(
        "As `original`, with removed activations fading out over half of the training.",
        {**ORIGINAL, "anneal": 0.5},
    ),
    "relaxed": Course(
        "As `repair`, with kept convolutions trained one by one and merged last.",
        {**REPAIR, "train": "relaxed"},
    ),
    "reconstructed": Course(
        "As `repair`, with 300 steps towards the original's values in between.",
        {**REPAIR, **RECONSTRUCT},
    ),
    "features": Course(
        "As `repair`, with the outputs of changed blocks distilled too.",
        REPAIR,
    ),
    "labels": Course(
        "As `repair`, by labels and the original's answers in equal shares; no mixup.",
        {**REPAIR, **LABELLED},
    ),
    "labels-only": Course(
        "As `repair`, by labels alone; no mixup.",
        {**REPAIR, "options": {"distill_weight": 0.0, "augment": UNMIXED}},
    ),
    "post-training": Course(
        "Repaired, then 300 steps towards the original's values: no labels, no fine-tuning, so no "
        "race either.",
        {**REPAIR, **RECONSTRUCT, "preset": "none"},
        (3e-3,),
    ),
}
"""Courses by name; ``labels`` is that of the recipes."""


@dataclass(frozen=True)
class Arm:
    """One method: what it may choose from, what it rewards, and how its plans are trained.

    Attributes:
        name: What it is called in tables; variants of ours begin with ``ours-``.
        tables: Candidates and importance.
        mode: Which of them it may use; ``random`` chooses blindly, ``pruned`` by Torch-Pruning.
        course: Name in ``COURSES``.
        form: Objective (``search.Objective``), ``auto`` as the pipeline chooses.
        capacity: Its reward for each convolution that keeps an activation, in the scores' unit.
        kinds: Kinds of candidates that it may use, of those that the tables hold.
        criterion: By what a ``pruned`` arm drops channels.
        race: Whether its best plans are trained for some steps, and the one that learns most taken.
        default: Whether it takes part unless others are named.
        about: One sentence for the page.
    """

    name: str
    tables: Tables
    mode: Mode | Literal["random", "untouched", "pruned"]
    course: str
    about: str
    form: Literal["auto", "delta", "exp"] = "auto"
    capacity: float = 0.0
    kinds: tuple[str, ...] = TODAY
    criterion: Criterion | None = None
    race: bool = False
    default: bool = True

    @property
    def chooser(self) -> tuple[object, ...]:
        """What decides its plans: arms that have it in common have the same ones."""
        looked = self.tables, self.mode, self.form, self.capacity, self.race
        return *looked, self.kinds, self.criterion


def _ours(course: str, default: bool = False) -> Arm:
    """Returns the arm that trains the plans of ours in another way.

    Without training the plan that loses least before it is taken.
    """
    found = COURSES[course]
    race = found.section.get("preset") != "none"
    return Arm(
        f"ours-{course}", "full", "layermerge", course, found.about, race=race, default=default
    )


def _kinds(
    name: str, about: str, kinds: tuple[str, ...], mode: Mode = "layermerge", race: bool = True
) -> Arm:
    """Returns an arm of the study of kinds, taught by labels too."""
    return Arm(name, "full", mode, "labels", about, kinds=kinds, race=race, default=False)


def _pruned(criterion: Criterion, about: str) -> Arm:
    """Returns an arm of Torch-Pruning, taught by labels too."""
    name = f"pruned-{criterion}"
    return Arm(name, "full", "pruned", "labels", about, criterion=criterion, default=False)


ARMS = (
    Arm(
        "ours",
        "full",
        "layermerge",
        "repair",
        "All rules, `calibrate`; of the best plans the one that learns most; repaired start.",
        race=True,
    ),
    Arm(
        "paper",
        "paper",
        "layermerge",
        "original",
        "The published rules, importance by short trainings, Σ exp(Δ), original start.",
    ),
    Arm(
        "depth",
        "paper",
        "depth",
        "original",
        "As `paper`, but only activations are removed (Kim et al., ICML 2023).",
    ),
    Arm(
        "layer",
        "full",
        "layer",
        "repair",
        "Only whole convolutions or branches are removed; scored by `calibrate`, repaired start.",
    ),
    Arm("random", "full", "random", "repair", "A random plan of all rules a seed, repaired start."),
    Arm(
        "paper-repaired",
        "paper",
        "layermerge",
        "repair",
        "The plan of `paper` with our start.",
        default=False,
    ),
    Arm(
        "ours-unraced",
        "full",
        "layermerge",
        "repair",
        "As `ours`, without a race: the plan that loses least before training.",
        default=False,
    ),
    Arm(
        "ours-exp",
        "full",
        "layermerge",
        "repair",
        "As `ours-unraced`, with the published objective Σ exp(Δ).",
        form="exp",
        default=False,
    ),
    Arm(
        "ours-capacity",
        "full",
        "layermerge",
        "repair",
        "As `ours-unraced`, with 0.1 nat for every convolution that keeps an activation.",
        capacity=0.1,
        default=False,
    ),
    _ours("post-training", default=True),
    _ours("labels", default=True),
    *(_ours(name) for name in ("original", "annealed", "relaxed", "reconstructed", "labels-only")),
    Arm(
        "untouched",
        "full",
        "untouched",
        "original",
        "Nothing replaced, trained all the same: what the training itself gives.",
        default=False,
    ),
    _kinds("all-kinds", "All five kinds, raced.", (*TODAY, "lowrank", "narrow")),
    _kinds("layermerge", "Merges and removals (`compose`, `fit`, `identity`), raced.", TODAY),
    _kinds("layer-labels", "Only removals, the best joint score.", TODAY, "layer", race=False),
    _kinds("width", "Only fewer channels inside blocks (`narrow`), raced.", ("narrow",)),
    Arm(
        "alds",
        "spectral",
        "layermerge",
        "labels",
        "Only splits of low rank, the worst spectral error least (ALDS, NeurIPS 2021).",
        kinds=("lowrank",),
        default=False,
    ),
    _pruned("magnitude", "Torch-Pruning: group magnitude, isomorphic groups ranked globally."),
    _pruned("taylor", "Torch-Pruning: group Taylor, isomorphic groups ranked globally."),
    _pruned("uniform", "Torch-Pruning: group magnitude, the same share everywhere."),
)

PAST = (_ours("features"),)
"""Arms of recorded results that can no longer be run: outputs of blocks are not distilled now."""
