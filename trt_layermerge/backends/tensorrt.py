"""ONNX bytes -> serialised engine, and a backend that times engines on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeAlias

from trt_layermerge.backends.base import Runner
from trt_layermerge.backends.cuda import Cuda, driver_problem
from trt_layermerge.backends.tensorrt_api import TensorRTApi, load_api
from trt_layermerge.backends.tensorrt_runner import EngineRunner
from trt_layermerge.core.device import PRECISIONS, DeviceInfo, Precision
from trt_layermerge.errors import (
    CorruptInputError,
    DeviceError,
    UnsupportedModelError,
    UsageError,
)

Shape: TypeAlias = tuple[int, ...]
Profile: TypeAlias = Mapping[str, tuple[Shape, Shape, Shape]]
"""Smallest, usual and largest shape by input name."""


@dataclass(frozen=True)
class EngineBuild:
    """A built engine and how it came about.

    Attributes:
        plan: The serialised engine.
        seconds: Wall time of parsing and building.
        library: ``tensorrt`` or ``tensorrt_rtx``.
        version: Its version.
        log: What the library said, verbose lines left out.
        precision: What the types of the network say it is.
        inputs: Shape by input name; -1 where the profile decides.
        outputs: Shape by output name.
        settings: Typing, TF32 and compute capability that the builder was given.
    """

    plan: bytes = field(repr=False)
    seconds: float
    library: str
    version: str
    log: tuple[str, ...]
    precision: Precision
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    settings: Mapping[str, Any]


def build_engine(
    model: bytes,
    precision: Precision | None = None,
    *,
    api: TensorRTApi | None = None,
    workspace_bytes: int | None = None,
    profile: Profile | None = None,
    on_log: Callable[[str], None] | None = None,
) -> EngineBuild:
    """Returns the engine of an ONNX model.

    Args:
        model: The ONNX model, typed for its precision.
        precision: What it must be; refused where its types say otherwise. None takes any.
        api: The library; TensorRT where it works, else TensorRT-RTX.
        workspace_bytes: Most memory that a layer may use while it runs, or the library's default.
        profile: Shapes of the inputs that have dynamic dimensions.
        on_log: Called with every line of the log as it comes.

    Raises:
        CorruptInputError: If the bytes are no ONNX model.
        UnsupportedModelError: If the parser refuses a node; all its errors are in the message.
        UsageError: If precision or profile do not fit the model.
        DeviceError: If the library cannot start or build; carries the end of its log.
    """
    api = api or load_api()
    log = api.logger(on_log)
    started = perf_counter()
    builder = _started(api, log)
    network = builder.create_network(api.network_flags())
    _parse(api, network, model, log)
    found = _checked_precision(api, network, precision)
    config = builder.create_builder_config()
    settings = {
        "typing": api.allow_precision(config, found),
        "tf32": api.uses_tf32(config),
        "compute_capability": api.choose_capability(config, driver_problem()),
    }
    if workspace_bytes is not None:
        config.set_memory_pool_limit(api.module.MemoryPoolType.WORKSPACE, workspace_bytes)
    _add_profile(builder, config, network, profile or {})
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise DeviceError(
            f"{api.flavor} {api.version} could not build the engine: {log.errors()}. Free memory "
            "or give less workspace, and type the same command again with -v for the whole log"
        )
    return EngineBuild(
        plan=bytes(plan),
        seconds=perf_counter() - started,
        library=api.flavor,
        version=api.version,
        log=tuple(log.lines),
        precision=found,
        inputs=_shapes(network.get_input, network.num_inputs),
        outputs=_shapes(network.get_output, network.num_outputs),
        settings=settings,
    )


class TensorRTBackend:
    """TensorRT or TensorRT-RTX on the current GPU.

    Engines are built on any machine that the library accepts; running one needs a GPU. That part
    has been run on fakes only. Times are those of CUDA events around each launch, without CUDA
    graphs, so launches shorter than about 50 µs measure the launch.
    """

    int8_remainder: Precision = "fp16"

    def __init__(self, flavor: str | None = None, *, workspace_bytes: int | None = None) -> None:
        """Takes the library's name, or None for the first that works, and a memory limit.

        Raises:
            MissingDependencyError: If the library is not installed.
            DeviceError: If it cannot be imported.
        """
        self._api = load_api(flavor)
        self._workspace_bytes = workspace_bytes
        self.name = self._api.flavor

    def device(self) -> DeviceInfo:
        """Returns the GPU, its compute capability and the CUDA version. Raises ``DeviceError``."""
        cuda = Cuda()
        settings = f"compute capability {cuda.compute_capability()}, CUDA {cuda.version()}"
        return DeviceInfo(self.name, self._api.version, cuda.device_name(), settings)

    def precisions(self) -> tuple[Precision, ...]:
        """Returns all of them: the types in the graph decide."""
        return PRECISIONS

    def open(self, model: bytes, *, seed: int = 0) -> Runner:
        """Builds an engine and loads it. Raises ``DeviceError``, without a driver before building.

        The errors of ``build_engine`` come through as they are.
        """
        cuda = Cuda()
        build = build_engine(model, api=self._api, workspace_bytes=self._workspace_bytes)
        return EngineRunner(self._api, cuda, build.plan, seed)


def load_engine(plan: bytes, api: TensorRTApi | None = None, *, seed: int = 0) -> Runner:
    """Returns a runner of a serialised engine. It executes code: check its sidecar first.

    Raises:
        DeviceError: If there is no driver, or the engine was built for another GPU or version.
    """
    return EngineRunner(api or load_api(), Cuda(), plan, seed)


def _started(api: TensorRTApi, log: Any) -> Any:
    try:
        return api.module.Builder(log)
    except Exception as error:  # without a driver TensorRT gives a TypeError about a null pointer
        raise DeviceError(
            f"{api.flavor} {api.version} cannot start a builder: {log.errors()} ({error}); "
            "type nvidia-smi to see the driver, or build with tensorrt_rtx, which needs none"
        ) from error


def _parse(api: TensorRTApi, network: Any, model: bytes, log: Any) -> None:
    parser = api.module.OnnxParser(network, log)
    parsed = parser.parse(model)
    errors = api.parser_errors(parser)
    if any(code == "MODEL_DESERIALIZE_FAILED" for code, _ in errors):
        raise CorruptInputError("these bytes are no ONNX model; export the network again")
    if not parsed or errors:
        words = "; ".join(f"{code} at {text}" for code, text in errors) or log.errors()
        raise UnsupportedModelError(
            f"{api.flavor} {api.version} cannot take this network: {words}. Replace the named "
            "operation, or keep the network on --backend onnxruntime"
        )
    if network.num_outputs == 0:  # what the parser makes of b'' and of some text
        raise CorruptInputError("the ONNX model is empty; export the network again")


def _checked_precision(api: TensorRTApi, network: Any, wanted: Precision | None) -> Precision:
    found = api.network_precision(network)
    if wanted is None or wanted == found:
        return found
    raise UsageError(
        f"the model is typed {found}, not {wanted}, and the types decide what is built; "
        f"choose --precision {found}, or give the model of precision {wanted}"
    )


def _add_profile(builder: Any, config: Any, network: Any, profile: Profile) -> None:
    inputs = _shapes(network.get_input, network.num_inputs)
    unknown = sorted(set(profile) - set(inputs))
    if unknown:
        raise UsageError(f"the profile names {unknown}, but the inputs are {sorted(inputs)}")
    for name, shape in inputs.items():
        if -1 in shape and name not in profile:
            raise UsageError(
                f"input {name!r} has dynamic dimensions {shape}: give a profile with its smallest, "
                "usual and largest shape, or export with a static batch"
            )
    if not profile:
        return
    shapes = builder.create_optimization_profile()
    for name, (smallest, usual, largest) in profile.items():
        shapes.set_shape(name, smallest, usual, largest)
    if config.add_optimization_profile(shapes) < 0:
        raise UsageError(f"the shapes {dict(profile)} do not fit the inputs {inputs}")


def _shapes(get: Callable[[int], Any], count: int) -> dict[str, Shape]:
    return {get(i).name: tuple(get(i).shape) for i in range(count)}
