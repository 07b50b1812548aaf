"""A record of a build: what was built from what, by what, how large and how quickly.

``engines/records`` keeps such records in place of the engines, which belong to one machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trt_layermerge.backends.tensorrt import EngineBuild
from trt_layermerge.core.jsonio import Json, sha256_bytes, write_json
from trt_layermerge.deploy.machine import Machine
from trt_layermerge.deploy.sidecar import Network

KIND = "builds"


def build_record(build: EngineBuild, network: Network, model: bytes) -> Json:
    """Returns one build as a row.

    Args:
        build: The build.
        network: Which network it is.
        model: The ONNX model that the builder was given.
    """
    return {
        "network": network,
        "precision": build.precision,
        "onnx_sha256": sha256_bytes(model),
        "onnx_bytes": len(model),
        "plan_sha256": sha256_bytes(build.plan),
        "plan_bytes": len(build.plan),
        "seconds": round(build.seconds, 3),
        "library": build.library,
        "library_version": build.version,
        "inputs": {name: list(shape) for name, shape in build.inputs.items()},
        "outputs": {name: list(shape) for name, shape in build.outputs.items()},
        "profile": {n: [list(s) for s in shapes] for n, shapes in build.profile.items()},
        "settings": dict(build.settings),
        "warnings": sum(line.startswith("WARNING") for line in build.log),
    }


def write_records(
    path: Path, rows: Sequence[Json], machine: Machine, facts: Mapping[str, Any]
) -> None:
    """Writes the records of one machine as one file.

    Args:
        path: Where to.
        rows: What ``build_record`` returned, and whatever the caller knows besides.
        machine: Where the engines were built.
        facts: What else decided them, such as versions and seeds.

    Raises:
        DeviceError: If the file cannot be written.
    """
    write_json(path, KIND, {**facts, "machine": asdict(machine), "builds": list(rows)})
