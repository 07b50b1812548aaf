"""Whether disk and memory will do for a run, told before it begins."""

from __future__ import annotations

import shutil
from math import prod
from pathlib import Path

from trt_layermerge.core.unit import ConvUnit, Unit
from trt_layermerge.errors import DeviceError
from trt_layermerge.pipeline.run import Run

COPIES_ON_DISK = 8
"""Relaxed, repaired and merged weights, both ONNX models, and the state of a training."""

COPIES_IN_MEMORY = 5
"""Original and trained network, gradients and the two moments of Adam."""

MIB = 2**20


def refuse_little_room(run: Run) -> None:
    """Compares what a run is sure to need with what is free.

    Raises:
        DeviceError: If there is less.
    """
    parameters = run.session.model.state_dict().values()
    weights = sum(value.numel() * value.element_size() for value in parameters)
    batch = 4 * prod(run.recipe.model.input[1:]) * run.recipe.importance.fit_images
    maps = 4 * run.recipe.measure.batch * max(map(_values, run.session.graph.units), default=0)
    free = shutil.disk_usage(run.folder.root).free
    if free < (needed := COPIES_ON_DISK * weights + MIB):
        raise DeviceError(
            f"{run.folder.root} has {free / MIB:,.0f} MiB free, and a run of this network writes "
            f"{needed / MIB:,.0f} MiB at least; free some, or choose a folder on another disk "
            "(--runs-dir DIR)"
        )
    available = available_memory()
    if available is not None and available < (needed := COPIES_IN_MEMORY * weights + batch + maps):
        raise DeviceError(
            f"{available / MIB:,.0f} MiB of memory are free, and a run of this network needs "
            f"{needed / MIB:,.0f} MiB at least; close other programs, fit on fewer images "
            "(--set importance.fit_images=128), or measure smaller batches (--batch)"
        )


def _values(unit: Unit) -> int:
    """Returns how many numbers one image is before and behind a convolution."""
    if not isinstance(unit, ConvUnit):
        return 0
    spec = unit.spec
    return spec.in_channels * spec.height * spec.width + spec.out_channels * prod(spec.out_size)


def available_memory() -> int | None:
    """Returns the bytes of memory that programs can still have, or None where nothing tells."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(sizes["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in sizes else None
