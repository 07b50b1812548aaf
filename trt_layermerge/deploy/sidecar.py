"""``engines/DEVICE/model.PRECISION.plan`` and the ``.json`` beside it that says what it is.

``original.PRECISION.plan`` is the network as it was, to compare with.

A serialised engine is code. The sidecar ties it to the run that built it: an engine whose hash is
not the one in its sidecar is not loaded. A sidecar proves no origin: it protects against mixed-up
and damaged files, not against somebody who writes both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from trt_layermerge.backends.tensorrt import EngineBuild
from trt_layermerge.backends.tensorrt_api import Flavor
from trt_layermerge.core.codec import Finite, dump, load
from trt_layermerge.core.device import Precision
from trt_layermerge.core.jsonio import (
    Json,
    damage,
    read_json,
    read_whole,
    sha256_bytes,
    write_bytes,
    write_json,
)
from trt_layermerge.deploy.machine import Machine, rebuild_command, why_other_gpu, why_other_version
from trt_layermerge.errors import CorruptInputError, UntrustedInputError, UsageError

KIND = "engine"

Network: TypeAlias = Literal["original", "merged"]
Shape: TypeAlias = tuple[int, ...]
STEMS: Mapping[Network, str] = {"original": "original", "merged": "model"}
"""Names of a network's files, ONNX and engines, without what follows the first dot."""


@dataclass(frozen=True)
class Origin:
    """What an engine was made from, as the run knows it.

    Attributes:
        onnx_sha256: Hash of the ONNX file it was built from.
        weights_sha256: Hash of ``merged.safetensors``; None for the original network, whose
            weights are told by the recipe.
        preprocess: ``scale``, ``mean`` and ``std`` of the input.
        labels: Class names in the order of the outputs, or None if they are not known.
        recipe: Text of the recipe.
        seed: Seed of the run.
    """

    onnx_sha256: str
    weights_sha256: str | None
    preprocess: Mapping[str, Any]
    labels: tuple[str, ...] | None
    recipe: str
    seed: int


@dataclass(frozen=True)
class Identity:
    """What an engine has to be: another one of the same run computes something else.

    Attributes:
        network: ``original`` or ``merged``.
        precision: What the types of its network are.
        onnx_sha256: Hash of the ONNX file that the run has.
        weights_sha256: Hash of the weights that the run has; None for the original network.
    """

    network: Network
    precision: Precision
    onnx_sha256: str
    weights_sha256: str | None


@dataclass(frozen=True)
class Sidecar:
    """What is known of one engine.

    Attributes:
        plan_sha256: Hash of the serialised engine.
        plan_bytes: Its size.
        network: ``original`` or ``merged``.
        precision: What the types of its network are.
        library: ``tensorrt`` or ``tensorrt_rtx``.
        library_version: Its version.
        settings: What the builder was given, and what it found around it.
        build_seconds: How long the build took.
        machine: Where it was built; what is not known is None there, with the reason.
        inputs: Shape by input name; -1 where the profile decides.
        outputs: Shape by output name.
        profile: Smallest, usual and largest shape of every input that has a -1.
        origin: What it was made from.
        accuracy: ``original`` and ``merged`` in torch as fractions, ``onnx`` of the graph that it
            was built from, ``engine`` its own where it was run; or None until it is verified.
        latency: ``p50_ms`` and ``p99_ms`` of this engine, or None where it was not timed.
        notes: Why ``accuracy`` or ``latency`` is None.
    """

    plan_sha256: str
    plan_bytes: int
    network: Network
    precision: Precision
    library: Flavor
    library_version: str
    settings: Mapping[str, Any]
    build_seconds: Finite
    machine: Machine
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    profile: Mapping[str, tuple[Shape, Shape, Shape]]
    origin: Origin
    accuracy: Mapping[str, Finite] | None = None
    latency: Mapping[str, Finite] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> Identity:
        """What the engine is."""
        origin = self.origin
        return Identity(self.network, self.precision, origin.onnx_sha256, origin.weights_sha256)

    def to_json(self) -> Json:
        """Returns the body of the file; the machine's fields stand at its top."""
        body = dump(self)
        machine = body.pop("machine")
        return {**body, **machine}

    @staticmethod
    def from_json(body: Json) -> Sidecar:
        """Returns the sidecar of a mapping. Raises what malformed fields cause."""
        return load(Sidecar, {**body, "machine": load(Machine, body)})


def sidecar_path(plan: Path) -> Path:
    """Returns where the sidecar of an engine lies: ``model.fp16.plan`` → ``model.fp16.json``."""
    return plan.with_suffix(".json")


def write_engine(
    root: Path, build: EngineBuild, origin: Origin, machine: Machine, network: Network = "merged"
) -> Path:
    """Writes an engine and its sidecar below ``root/DEVICE`` and returns the engine's path.

    The engine is replaced first and its sidecar last, each whole or not at all: a full disk leaves
    the old engine, and an interruption one that is refused, since the old sidecar is another's.

    Args:
        root: Folder ``engines`` of a run.
        build: What was built.
        origin: What it was made from.
        machine: Where it was built.
        network: Which network it is.

    Raises:
        DeviceError: If the folder cannot be written.
    """
    path = root / machine.folder / f"{STEMS[network]}.{build.precision}.plan"
    write_bytes(path, build.plan)
    write_json(sidecar_path(path), KIND, describe(build, origin, machine, network).to_json())
    return path


def describe(
    build: EngineBuild, origin: Origin, machine: Machine, network: Network = "merged"
) -> Sidecar:
    """Returns the sidecar of an engine that was just built, neither verified nor timed.

    Arguments are those of ``write_engine``.
    """
    return Sidecar(
        plan_sha256=sha256_bytes(build.plan),
        plan_bytes=len(build.plan),
        network=network,
        precision=build.precision,
        library=build.library,
        library_version=build.version,
        settings=build.settings,
        build_seconds=build.seconds,
        machine=machine,
        inputs=build.inputs,
        outputs=build.outputs,
        profile=build.profile,
        origin=origin,
        notes={"accuracy": "not verified yet", "latency": "this engine was not timed"},
    )


def amend_sidecar(
    plan: Path,
    *,
    accuracy: Mapping[str, float] | None = None,
    latency: Mapping[str, float] | None = None,
) -> Sidecar:
    """Adds what later stages found out to the sidecar of an engine, and returns it.

    Args:
        plan: The engine's file.
        accuracy: Shares of right classes by network or file, or None: as it was.
        latency: ``p50_ms`` and ``p99_ms``, or None: as it was.

    Raises:
        UntrustedInputError: If engine and sidecar do not belong together.
    """
    _, sidecar = read_engine(plan)
    assert sidecar is not None  # only trust=True gives an engine without one
    known = {"accuracy": accuracy or sidecar.accuracy, "latency": latency or sidecar.latency}
    notes = {name: text for name, text in sidecar.notes.items() if not known.get(name)}
    amended = replace(sidecar, accuracy=known["accuracy"], latency=known["latency"], notes=notes)
    write_json(sidecar_path(plan), KIND, amended.to_json())
    return amended


def check_engine(
    plan: Path, *, trust: bool = False, wanted: Identity | None = None
) -> Sidecar | None:
    """Returns the sidecar of an engine, which ``read_engine`` checks, and raises what it raises."""
    return read_engine(plan, trust=trust, wanted=wanted)[1]


def read_engine(
    plan: Path, *, trust: bool = False, wanted: Identity | None = None
) -> tuple[bytes, Sidecar | None]:
    """Returns a serialised engine, exactly the bytes that were checked, and its sidecar.

    Args:
        plan: The engine's file.
        trust: Whether an engine without a matching sidecar is read; it then comes without one.
        wanted: What the engine has to be; None where nothing tells.

    Raises:
        UsageError: If there is no such engine.
        UntrustedInputError: If its sidecar is missing, damaged or another engine's, or the engine
            is not the one that is wanted, unless trusted.
    """
    try:
        data = read_whole(plan)
    except OSError as error:
        raise UsageError(
            f"cannot read the engine {plan}: {error.strerror or error}; "
            f"build it first: {rebuild_command(plan)}"
        ) from error
    try:
        sidecar = _matching(plan, data, wanted)
    except UntrustedInputError:
        if not trust:
            raise
        sidecar = None
    return data, sidecar


def mismatch(
    sidecar: Sidecar, library: str, version: str, machine: Machine, plan: Path | None = None
) -> str | None:
    """Returns why an engine should not be loaded here and what to type, or None where it fits.

    Args:
        sidecar: What is known of the engine.
        library: ``tensorrt`` or ``tensorrt_rtx``, as it is installed here.
        version: Its version.
        machine: This machine.
        plan: Where the engine lies, which tells the run to build again.
    """
    built = (sidecar.library, sidecar.library_version)
    why = why_other_version(built, (library, version), sidecar.settings) or why_other_gpu(
        sidecar.machine, machine, sidecar.settings
    )
    if why is None:
        return None
    command = rebuild_command(plan or Path("model.plan"))
    return f"{why}; build it again on this machine: {command}"


def _matching(plan: Path, data: bytes, wanted: Identity | None) -> Sidecar:
    path = sidecar_path(plan)
    try:
        body = read_json(path, KIND)
        with damage(path):
            sidecar = Sidecar.from_json(body)
    except (UsageError, CorruptInputError) as error:
        raise _untrusted(plan, f"its sidecar {path.name} is missing or damaged") from error
    if sidecar.plan_sha256 != sha256_bytes(data):
        raise _untrusted(
            plan,
            f"its sidecar {path.name} describes another engine (one of the files was changed, "
            "damaged or mixed up)",
        )
    if wanted is not None and sidecar.identity != wanted:
        pairs = [(f.name, getattr(sidecar.identity, f.name)) for f in fields(Identity)]
        other = ", ".join(f"{n} is {v}" for n, v in pairs if v != getattr(wanted, n))
        raise _untrusted(plan, f"it was built from another network than it stands for: its {other}")
    return sidecar


def _untrusted(plan: Path, why: str) -> UntrustedInputError:
    return UntrustedInputError(
        f"the engine {plan} is not loaded, because {why}, and an engine runs code of its own; "
        f"build it again ({rebuild_command(plan)}), or type --trust-engine, only for engines "
        "that you built yourself"
    )


def build_record(build: EngineBuild, network: Network, model: bytes) -> Json:
    """Returns one build as a row of ``engines/records``, which keeps such rows, not the engines.

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
