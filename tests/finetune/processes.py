"""Trainings of the tests of ``finetune.processes``, alone or as one of several processes.

As a script: ``python -m tests.finetune.processes FOLDER CASE ...``, launched by ``launch``.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from tests.data.helpers import PREPROCESS, save_images
from trt_layermerge.data import open_data
from trt_layermerge.finetune.loop import EpochRow, FinetuneResult, finetune
from trt_layermerge.finetune.processes import Accelerated, ProcessGroup
from trt_layermerge.finetune.recipe import FinetuneRecipe

RECIPES = {
    # Nothing depends on who sees which image: the sum of the gradients is that of one process.
    "exact": FinetuneRecipe(
        epochs=2, batch=7, optimiser="sgd", lr=0.05, bn="freeze", label_smoothing=0.1, seed=3
    ),
    "usual": FinetuneRecipe(
        epochs=6, batch=16, lr=0.02, augment=("shift:1",), ema_decay=0.5, grad_clip=5.0, seed=3
    ),
}
RECIPES["whole"] = RECIPES["usual"]


class Unused(nn.Sequential):
    """A sequence with a layer that no output depends on."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.unused = nn.Linear(2, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for name, layer in self.named_children():
            images = images if name == "unused" else layer(images)
        return images


def network(seed: int, dropout: float) -> nn.Module:
    """Returns a small network with BN."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        norm = nn.BatchNorm2d(6)
        norm.running_mean = 0.1 * torch.randn(6)
        return Unused(
            nn.Conv2d(3, 6, 3, padding=1, bias=False),
            norm,
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 3),
        )


def train(
    folder: Path,
    case: str,
    group: ProcessGroup | None = None,
    *,
    state: bool = False,
    slow: float = 0,
) -> tuple[nn.Module, FinetuneResult]:
    """Returns a trained network and what its training came to; 96 images, 25 to judge."""
    # Only the start of the first process counts.
    student = network(group.index if group else 0, 0.0 if case == "exact" else 0.2)
    images, val = (
        open_data(f"npz:{folder / name}", PREPROCESS) for name in ("train.npz", "val.npz")
    )

    def wait(_: EpochRow) -> None:
        time.sleep(slow)

    result = finetune(
        student,
        images,
        val,
        RECIPES[case],
        teacher=network(1, 0.0),
        state_path=folder / f"{case}.state" if state else None,
        on_epoch=wait if case == "usual" else None,
        group=group,
    )
    return student, result


def write_data(folder: Path) -> None:
    """Writes the images of the trainings."""
    save_images(folder / "train.npz", 96, 1)
    save_images(folder / "val.npz", 25, 2)


def launch(
    folder: Path, cases: Sequence[str], count: int = 2, slow: float = 0
) -> list[subprocess.Popen[str]]:
    """Starts the processes of a training, as a launcher does, on this machine alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    shared |= {"OMP_NUM_THREADS": "1", "SLOW": str(slow), "GLOO_SOCKET_IFNAME": "lo"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.finetune.processes", str(folder), *cases],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def main() -> None:
    """Trains every case and writes what this process ended with."""
    folder, slow = Path(sys.argv[1]), float(os.environ["SLOW"])
    group = Accelerated(cpu=True)
    for case in sys.argv[2:]:
        student, result = train(folder, case, group, state=True, slow=slow)
        last = result.history[-1]
        figures = {"loss": last.loss, "val": result.val_accuracy, "resumed": result.resumed_epochs}
        save_file(
            student.state_dict(),
            folder / f"{case}.{group.index}",
            {key: str(value) for key, value in figures.items()},
        )
    group.close()
    (folder / f"threads.{group.index}").write_text("\n".join(thread_names()), encoding="utf-8")


def thread_names() -> list[str]:
    """Returns the names that the threads of this process have for the system."""
    return [
        path.read_text(encoding="utf-8").strip() for path in Path("/proc/self/task").glob("*/comm")
    ]


if __name__ == "__main__":
    main()
