"""The network that is built, timed and verified at a precision, as ONNX."""

from __future__ import annotations

from pathlib import Path

from trt_layermerge.core.device import Precision
from trt_layermerge.core.jsonio import Json, damage, read_json, sha256_bytes
from trt_layermerge.deploy.sidecar import STEMS, Network
from trt_layermerge.errors import CorruptInputError, UsageError, command
from trt_layermerge.export.batch import with_batch
from trt_layermerge.export.fp16 import to_precision

ENGINE_FALLBACK: Precision = "fp16"
"""The float type of what int8 leaves in TensorRT's engines."""

RUNTIME_FALLBACK: Precision = "fp32"
"""The same in ONNX Runtime on a CPU."""

CALIBRATION = "calibration.json"
MERGED, TRAINED = "merged.safetensors", "qat.safetensors"


def master_name(network: Network, precision: Precision) -> str:
    """Returns the name of the file in the run's folder that a precision is made from."""
    return f"{STEMS[network]}{'.int8' if precision == 'int8' else ''}.onnx"


def deployed_model(
    folder: Path,
    network: Network,
    precision: Precision,
    fallback: Precision,
    *,
    keep_io: bool = True,
    batch: int | None = None,
) -> bytes:
    """Returns a network of the run as ONNX, typed for a precision.

    Args:
        folder: Where the networks were exported to.
        network: Which of the two.
        precision: What to type it for.
        fallback: At int8, the float type of what is not quantised; else of no effect.
        keep_io: Whether inputs and outputs stay float32.
        batch: What to fix the batch to; None leaves it as it was exported.

    Raises:
        UsageError: If the run has no such network (yet).
        CorruptInputError: If an int8 network is not the one that was calibrated.
        UnsupportedModelError: If the network cannot be typed so, or take this batch.
    """
    name = master_name(network, precision)
    model = _read(folder, name, "calibrate" if precision == "int8" else "export")
    if precision == "int8":
        _check_calibrated(folder, network, model)
    if batch is not None:
        model = with_batch(model, batch)
    return to_precision(model, fallback if precision == "int8" else precision, keep_io=keep_io)


def weights_name(folder: Path, precision: Precision) -> str:
    """Returns the file of the run with the merged network's weights at a precision.

    Raises:
        UsageError: If int8 is asked for and was not calibrated.
        CorruptInputError: If ``calibration.json`` is damaged.
    """
    if precision != "int8":
        return MERGED
    return str(_calibrated(folder, "merged")["weights"])


def _read(folder: Path, name: str, stage: str) -> bytes:
    path = folder / name
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(
            f"the run {folder.name!r} has no {name}; make it first: {command(stage, folder)}"
        ) from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def _check_calibrated(folder: Path, network: Network, model: bytes) -> None:
    """Refuses an int8 network that ``calibrate`` did not finish, or that is another one."""
    if sha256_bytes(model) != _calibrated(folder, network)["sha256"]:
        raise CorruptInputError(
            f"{folder / master_name(network, 'int8')} is not as calibrate left it; make it "
            f"again: {command('calibrate', folder)}"
        )


def _calibrated(folder: Path, network: Network) -> Json:
    """Returns what ``calibration.json`` says of a network."""
    path = folder / CALIBRATION
    body = read_json(path, "calibrations")
    with damage(path):
        found = body["networks"].get(network)
        if found is not None:
            return {"sha256": str(found["sha256"]), "weights": found["weights"]}
    raise UsageError(
        f"the run {folder.name!r} was not calibrated for int8; do that: "
        f"{command('calibrate', folder)}"
    )
