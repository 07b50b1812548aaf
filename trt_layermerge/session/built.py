"""What there is to time and to verify: the precisions of a run, and the engines it has built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trt_layermerge.core.device import PRECISIONS, Precision
from trt_layermerge.core.jsonio import damage, read_json, sha256_file
from trt_layermerge.deploy.sidecar import Identity, Network
from trt_layermerge.session.deployed import master_name, weights_name
from trt_layermerge.session.settings import Settings


@dataclass(frozen=True)
class Built:
    """One engine that ``build`` was to make.

    Attributes:
        network: ``original`` or ``merged``.
        precision: What it was built at.
        plan: Name of the engine in the run's folder, or None where there is none.
        error: Why there is none, or None.
        onnx_sha256: Hash of the ONNX model that it was built from, or None where there is none.
    """

    network: Network
    precision: Precision
    plan: str | None
    error: str | None
    onnx_sha256: str | None = None


def wanted_precisions(settings: Settings) -> tuple[Precision, ...]:
    """Returns the precisions that are measured or built; the fp32 master is always one."""
    wanted = {"fp32", *asked_precisions(settings)}
    return tuple(p for p in PRECISIONS if p in wanted)


def asked_precisions(settings: Settings) -> set[Precision]:
    """Returns the precisions that are measured or built.

    Without engines those of ``build.precisions`` are not, but for int8: it is calibrated, and what
    was calibrated is checked, timed and bundled as ONNX.
    """
    built = {*settings.build.precisions}
    built = built & {"int8"} if settings.build.engine == "none" else built
    return {settings.measure.precision, *built}


def built_engines(folder: Path) -> tuple[Built, ...]:
    """Returns what ``build.json`` lists, the merged network's engines first.

    Raises:
        CorruptInputError: If the file is damaged.
    """
    path = folder / "build.json"
    body = read_json(path, "build")
    with damage(path):
        found = [
            Built(
                e.get("network", "merged"),
                e["precision"],
                e["plan"],
                e["error"],
                e.get("onnx_sha256"),
            )
            for e in body["engines"]
        ]
    return tuple(sorted(found, key=lambda b: b.network))


def identity_of(folder: Path, built: Built) -> Identity:
    """Returns what an engine has to be, as the run's files say now.

    Raises:
        UsageError: If a file is missing, or int8 was not calibrated.
        CorruptInputError: If ``calibration.json`` is damaged.
    """
    merged = built.network == "merged"
    return Identity(
        built.network,
        built.precision,
        sha256_file(folder / master_name(built.network, built.precision)),
        sha256_file(folder / weights_name(folder, built.precision)) if merged else None,
    )


def engine_names(folder: Path) -> list[str]:
    """Returns the engines that were built, relative to the run's folder."""
    return [built.plan for built in built_engines(folder) if built.plan is not None]


def engine_hashes(folder: Path) -> dict[str, str | None]:
    """Returns the hash of every engine by its name; None where the file is gone.

    Part of what decides the outcome of a stage that loads engines: ``build.json`` says which there
    are, not what is in them by now.
    """
    paths = {name: folder / name for name in engine_names(folder)}
    return {name: sha256_file(p) if p.is_file() else None for name, p in paths.items()}
