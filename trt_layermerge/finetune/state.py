"""The state of an unfinished training as one safetensors file: tensors, and JSON in its header."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from trt_layermerge.core.jsonio import (
    damage,
    regular,
    schema_name,
    sha256_bytes,
    sha256_json,
    write_bytes,
)
from trt_layermerge.errors import CorruptInputError, DeviceError
from trt_layermerge.finetune.recipe import FinetuneRecipe

log = logging.getLogger(__name__)

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class TrainState:
    """Where a training stands after a whole epoch.

    Attributes:
        model: Values of the network's ``state_dict``.
        optimiser: Buffers of the optimiser as ``PARAMETER/BUFFER``.
        mean: Running mean of the network's floating values; empty without one.
        history: Rows of the finished epochs.
    """

    model: Tensors
    optimiser: Tensors
    mean: Tensors
    history: list[dict[str, Any]]


def fingerprint(
    student: nn.Module, recipe: FinetuneRecipe, images: int, taught: bool, identity: str
) -> str:
    """Returns a hash of start, recipe, sizes, and of what the caller calls images and teacher.

    Args:
        student: The network before its first step.
        recipe: How it is trained.
        images: How many there are.
        taught: Whether there is a teacher.
        identity: Tells these images and this teacher from others.
    """
    start = {
        name: [str(value.dtype), list(value.shape), sha256_bytes(_bytes(value))]
        for name, value in student.state_dict().items()
    }
    return sha256_json([start, recipe.to_json(), images, taught, identity])


def save_state(path: Path, state: TrainState, run: str) -> None:
    """Replaces the file of an unfinished training atomically.

    Args:
        path: The file.
        state: Where the training stands.
        run: Its ``fingerprint``, which ``load_state`` asks for.

    Raises:
        DeviceError: If it cannot be written.
    """
    parts = {"model": state.model, "optimiser": state.optimiser, "mean": state.mean}
    tensors = {
        f"{part}/{name}": value.detach().to("cpu", copy=True).contiguous()
        for part, values in parts.items()
        for name, value in values.items()
    }
    header = {
        "schema": schema_name("finetune-state"),
        "run": run,
        "history": json.dumps(state.history),
    }
    header["sha256"] = _seal(tensors, header)
    write_bytes(path, save(tensors, metadata=header))


def load_state(path: Path, run: str) -> TrainState | None:
    """Returns the state of a file, or None if there is none of this training.

    A state of another training may have taken days: it is renamed, not overwritten.

    Raises:
        CorruptInputError: If it is damaged.
        DeviceError: If it cannot be renamed, or memory is lacking.
    """
    if not path.exists():
        return None
    try:
        with safe_open(regular(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except MemoryError as error:
        raise DeviceError(
            f"cannot read {path}: it is larger than the memory; close other programs, or delete it "
            "to train anew, then type the same command"
        ) from error
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CorruptInputError(
            f"{path} is damaged ({error}); delete it and type the same command to train anew"
        ) from error
    with damage(path):
        if header["schema"] != schema_name("finetune-state"):
            raise ValueError(f"schema is {header['schema']!r}")
        if header.get("sha256") not in (None, _seal(tensors, header)):
            raise ValueError("its values are not as they were written")
        if header["run"] != run:
            _set_aside(path, header["run"])
            return None
        parts: dict[str, Tensors] = {"model": {}, "optimiser": {}, "mean": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = value
        return TrainState(**parts, history=list(json.loads(header["history"])))


def _set_aside(path: Path, run: str) -> None:
    """Renames the state of another training after its run."""
    kept = path.with_name(f"{path.stem}.{sha256_bytes(run.encode())[:8]}{path.suffix}")
    try:
        path.rename(kept)
    except OSError as error:
        raise DeviceError(f"cannot rename {path}: {error.strerror or error}; move it") from error
    log.warning("%s is of another training: kept as %s, training anew", path, kept.name)


def _seal(tensors: Tensors, header: dict[str, str]) -> str:
    """Returns a hash of all that a state holds."""
    told = {key: value for key, value in header.items() if key != "sha256"}
    values = {
        name: [str(value.dtype), list(value.shape), sha256_bytes(_bytes(value))]
        for name, value in tensors.items()
    }
    return sha256_json([told, values])


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
