"""A record of a build: what was built from what, by what, how large and how quickly.

``engines/records`` keeps such records in place of the engines, which belong to one machine.
"""

from __future__ import annotations

from trt_layermerge.backends.tensorrt import EngineBuild
from trt_layermerge.core.jsonio import Json, sha256_bytes
from trt_layermerge.deploy.sidecar import Network


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
