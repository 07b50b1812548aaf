"""The network that is built, timed and verified at a precision, as ONNX."""

from __future__ import annotations

from typing import Literal, TypeAlias

from trt_layermerge.core.device import Precision
from trt_layermerge.errors import UsageError
from trt_layermerge.pipeline.context import Context

Network: TypeAlias = Literal["original", "merged"]

STEMS: dict[Network, str] = {"original": "original", "merged": "model"}
"""Names of the files by network, without what follows the first dot."""


def master_name(network: Network, precision: Precision) -> str:
    """Returns the name of the file in the run's folder that a precision is made from."""
    return f"{STEMS[network]}{'.int8' if precision == 'int8' else ''}.onnx"


def deployed_model(
    context: Context,
    network: Network,
    precision: Precision,
    remainder: Precision,
    *,
    keep_io: bool = True,
    batch: int | None = None,
) -> bytes:
    """Returns a network of the run as ONNX, typed for a precision.

    Args:
        context: The run.
        network: Which of the two.
        precision: What to type it for.
        remainder: At int8, the float type of what is not quantised; else of no effect.
        keep_io: Whether inputs and outputs stay float32.
        batch: What to fix the batch to; None leaves it as it was exported.

    Raises:
        UsageError: If the run has no such network (yet).
        CorruptInputError: If the file is damaged.
        UnsupportedModelError: If the network cannot be typed so, or take this batch.
    """
    from trt_layermerge.export.batch import with_batch
    from trt_layermerge.export.fp16 import to_precision

    model = _master(context, network, precision)
    if batch is not None:
        model = with_batch(model, batch)
    return to_precision(model, remainder if precision == "int8" else precision, keep_io=keep_io)


def _master(context: Context, network: Network, precision: Precision) -> bytes:
    path = context.folder / master_name(network, precision)
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        run = context.folder.root.name
        todo = "calibrate" if precision == "int8" else "export"
        raise UsageError(
            f"the run {run!r} has no {path.name}; make it first: trt-layermerge {todo} --run {run}"
        ) from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
