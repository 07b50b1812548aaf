"""How a relaxed network is trained: one frozen record, free of torch, and the published ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, get_args

from trt_layermerge.errors import UsageError, did_you_mean

Optimiser = Literal["sgd", "adamw"]
BatchNormMode = Literal["train", "freeze", "reestimate"]


@dataclass(frozen=True, slots=True)
class FinetuneRecipe:
    """Everything that decides the outcome of a training, given data and start.

    Attributes:
        epochs: Passes over the training images.
        batch: Images a step; the last, smaller batch of an epoch is left out.
        optimiser: ``sgd`` or ``adamw``.
        lr: Peak learning rate, reached after warm-up, then lowered to 0 along a half cosine.
        momentum: Momentum of SGD; the first beta of AdamW.
        nesterov: Whether SGD looks ahead.
        weight_decay: L2 penalty of SGD; decoupled decay of AdamW.
        decay_bn_bias: Whether one-dimensional parameters (BN, biases) decay too.
        warmup_epochs: Epochs of linear rise; fractions are allowed.
        label_smoothing: Weight of the uniform distribution in the targets.
        distill_weight: Share of the teacher's outputs in the loss, 0 to 1.
        temperature: Divides logits of teacher and student; the loss is scaled by its square.
        ema_decay: Decay of a running mean of the weights, which then is the result; None for none.
        grad_clip: Largest L2 norm of the gradient; None for no limit.
        amp: Whether a CUDA device computes in mixed precision; no effect elsewhere.
        augment: Changes of the images, each as ``kind:amount`` (``data.augment.parse_augment``).
        bn: ``train``: running statistics follow; ``freeze``: kept as they are; ``reestimate``:
            after the last epoch, averaged anew over the unaugmented training images.
        seed: Seed of order, augmentation and dropout.
    """

    epochs: int = 8
    batch: int = 100
    optimiser: Optimiser = "adamw"
    lr: float = 4e-3
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.01
    decay_bn_bias: bool = False
    warmup_epochs: float = 0.5
    label_smoothing: float = 0.0
    distill_weight: float = 0.9
    temperature: float = 4.0
    ema_decay: float | None = None
    grad_clip: float | None = None
    amp: bool = False
    augment: tuple[str, ...] = ()
    bn: BatchNormMode = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses values that cannot be used. Raises ``UsageError``."""
        limits = {
            "epochs": self.epochs >= 0,
            "batch": self.batch >= 1,
            "optimiser": self.optimiser in get_args(Optimiser),
            "lr": 0 < self.lr < math.inf,
            "momentum": 0 <= self.momentum < 1,
            "nesterov": not (self.optimiser == "sgd" and self.nesterov and self.momentum == 0),
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "warmup_epochs": 0 <= self.warmup_epochs < math.inf,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "distill_weight": 0 <= self.distill_weight <= 1,
            "temperature": 0 < self.temperature < math.inf,
            "ema_decay": self.ema_decay is None or 0 <= self.ema_decay < 1,
            "grad_clip": self.grad_clip is None or self.grad_clip > 0,
            "bn": self.bn in get_args(BatchNormMode),
            "seed": 0 <= self.seed < 2**32,
        }
        mixed = any(name.startswith("mixup") for name in self.augment)
        if mixed and self.distill_weight < 1:
            raise UsageError(
                "mixup shows images that no label fits; set distill_weight to 1, so that only the "
                "teacher's answers count, or leave mixup out"
            )
        wrong = [f"{name}={getattr(self, name)!r}" for name, good in limits.items() if not good]
        if wrong:
            raise UsageError(f"a fine-tuning recipe cannot have {', '.join(wrong)}")

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready mapping that ``from_json`` reads back."""
        return {**asdict(self), "augment": list(self.augment)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> FinetuneRecipe:
        """Returns the recipe of a mapping; absent fields take their defaults.

        Raises:
            UsageError: If a field is unknown or its value cannot be used.
        """
        known = [field.name for field in fields(FinetuneRecipe)]
        if unknown := sorted(data.keys() - set(known)):
            hint = did_you_mean(unknown[0], known)
            raise UsageError(f"a fine-tuning recipe has no field {', '.join(unknown)}{hint}")
        if isinstance(data.get("augment"), str):
            raise UsageError(f"augment is a list of augmentations; type [{data['augment']}]")
        try:
            return FinetuneRecipe(**{**data, "augment": tuple(data.get("augment", ()))})
        except TypeError as error:
            raise UsageError(f"a field of the fine-tuning recipe is malformed: {error}") from error


def learning_rate(recipe: FinetuneRecipe, step: int, steps_per_epoch: int) -> float:
    """Returns the learning rate of a step, counted from 0.

    Linear over the warm-up, ``lr · (step + 1) / warm``, then
    ``lr / 2 · (1 + cos(π · (step − warm) / (total − warm)))``.

    Args:
        recipe: Peak rate, epochs and warm-up.
        step: Number of the step in the whole training.
        steps_per_epoch: Steps of an epoch.
    """
    total = recipe.epochs * steps_per_epoch
    warm = round(recipe.warmup_epochs * steps_per_epoch)
    if step < warm:
        return recipe.lr * (step + 1) / warm
    return recipe.lr / 2 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


_MOBILENET = FinetuneRecipe(
    epochs=180,
    batch=256,
    optimiser="sgd",
    lr=0.05,
    weight_decay=1e-5,
    decay_bn_bias=True,
    warmup_epochs=0,
    distill_weight=0.0,
    augment=("crop:0.08", "flip"),
).to_json()

PRESETS: Mapping[str, FinetuneRecipe] = MappingProxyType(
    {
        "short": FinetuneRecipe(),
        "resnet34": FinetuneRecipe(
            epochs=90,
            batch=1024,
            optimiser="sgd",
            lr=1.024,
            momentum=0.875,
            nesterov=False,
            weight_decay=3.05e-5,
            warmup_epochs=8,
            label_smoothing=0.1,
            distill_weight=0.0,
            amp=True,
            augment=("crop:0.08", "flip"),
        ),
        "mobilenet_v2_1.0": FinetuneRecipe.from_json(_MOBILENET),
        "mobilenet_v2_1.4": FinetuneRecipe.from_json(
            {
                **_MOBILENET,
                "lr": 0.1,
                "augment": ("crop:0.08", "flip", "randaugment:5", "jitter:0.4", "erase:0.25"),
                "label_smoothing": 0.1,
                "grad_clip": 5.0,
            }
        ),
        "importance": FinetuneRecipe.from_json({**_MOBILENET, "epochs": 1, "lr": 0.1}),
    }
)
"""Recipes by name; ``MEANINGS`` says what each is."""

MEANINGS: Mapping[str, str] = MappingProxyType(
    {
        "short": "Some epochs of AdamW, taught mostly by the original's answers; the default.",
        "none": "No training: the repaired network is the result.",
        "resnet34": "The paper's, for ResNet-34 on ImageNet.",
        "mobilenet_v2_1.0": "The paper's, for MobileNetV2 on ImageNet.",
        "mobilenet_v2_1.4": "The paper's, for MobileNetV2 of 1.4 times the width.",
        "importance": "The paper's, for one entry of its importance table.",
    }
)
"""What ``finetune.preset`` may name, and what that is (LayerMerge, ICML 2024)."""

DEVIATIONS: Mapping[str, str] = MappingProxyType(
    {
        "resnet34": "mixed precision is bfloat16, which needs no scaling of the loss",
        "mobilenet_v2_1.4": "RandAugment is torchvision's at the same strength instead of timm's: "
        "both operations that are drawn are applied, not each with probability 0.5; Invert and "
        "SolarizeAdd are not among them, and colour operations are of other strengths",
    }
)
"""Where a preset falls short of the published recipe."""

UNSUPPORTED: Mapping[str, str] = MappingProxyType(
    {
        "ddpm": "the published recipe trains a diffusion model (100,000 steps of Adam on a noise "
        "prediction loss), and these recipes train by labels and a teacher; examples/ddpm has a "
        "loop of its own between relax and merge",
    }
)
"""Published recipes that cannot be expressed, and why."""


def preset(name: str) -> FinetuneRecipe:
    """Returns the recipe of that name.

    Raises:
        UsageError: If there is none, or it cannot be expressed.
    """
    if name in UNSUPPORTED:
        raise UsageError(f"the recipe {name} is not supported: {UNSUPPORTED[name]}")
    if name not in PRESETS:
        raise UsageError(f"there is no recipe {name!r}; known: {', '.join(MEANINGS)}")
    return PRESETS[name]
