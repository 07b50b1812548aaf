"""ONNX bytes -> serialised engine, and a backend that times engines on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

from trt_layermerge.backends.base import Runner
from trt_layermerge.backends.cuda import find_cuda, gpu_name
from trt_layermerge.backends.tensorrt_api import Flavor, TensorRTApi, load_api
from trt_layermerge.backends.tensorrt_cache import TimingCache
from trt_layermerge.backends.tensorrt_config import (
    add_profile,
    configure,
    input_shapes,
    output_shapes,
)
from trt_layermerge.backends.tensorrt_failures import cannot_build, cannot_parse
from trt_layermerge.backends.tensorrt_log import BuildLog
from trt_layermerge.backends.tensorrt_opset import check_opset
from trt_layermerge.backends.tensorrt_options import (
    BuildOptions,
    Profile,
    Shape,
    default_timing_cache,
)
from trt_layermerge.backends.tensorrt_runner import EngineRunner
from trt_layermerge.backends.tensorrt_site import look_around
from trt_layermerge.core.device import PRECISIONS, DeviceInfo, Precision
from trt_layermerge.errors import CorruptInputError, DeviceError, UsageError

if TYPE_CHECKING:
    import tensorrt as trt

DEFAULTS = BuildOptions()


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
        settings: What the builder was given, and what it found around it.
        profile: Smallest, usual and largest shape of the inputs that have dynamic dimensions.
    """

    plan: bytes = field(repr=False)
    seconds: float
    library: Flavor
    version: str
    log: tuple[str, ...]
    precision: Precision
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    settings: Mapping[str, Any]
    profile: Profile = field(default_factory=dict)


def build_engine(
    model: bytes,
    precision: Precision | None = None,
    *,
    api: TensorRTApi | None = None,
    options: BuildOptions = DEFAULTS,
) -> EngineBuild:
    """Returns the engine of an ONNX model.

    Args:
        model: The ONNX model, typed for its precision.
        precision: What it must be; refused where its types say otherwise. None takes any.
        api: The library; TensorRT where it works, else TensorRT-RTX.
        options: How it is built.

    Raises:
        CorruptInputError: If the bytes are no ONNX model.
        UnsupportedModelError: If the parser refuses a node, or a type is none of the precisions;
            all errors are in the message.
        UsageError: If precision or profile do not fit the model, or the options the library.
        DeviceError: If the library cannot start or build; carries the end of its log.
    """
    api = api or load_api()
    log = api.logger()
    started = perf_counter()
    builder = _started(api, log)
    network = _parsed(api, builder, model, log)
    found = _checked_precision(api, network, precision)
    config = builder.create_builder_config()
    site = look_around()
    settings = configure(api, config, network, found, options, site)
    add_profile(builder, config, network, options.profile or {})
    cache = TimingCache(api, options.timing_cache, site)
    cache.load(config)
    error = plan = None
    try:
        plan = builder.build_serialized_network(network, config)
    except (MemoryError, RuntimeError) as raised:
        error = raised
    if plan is None:
        raise cannot_build(api, log, options, settings["workspace_bytes"], site, error) from error
    cache.save(config)
    return EngineBuild(
        plan=bytes(plan),
        seconds=perf_counter() - started,
        library=api.flavor,
        version=api.version,
        log=tuple(log.lines),
        precision=found,
        inputs=input_shapes(network),
        outputs=output_shapes(network),
        settings={**settings, "timing_cache": cache.words},
        profile=dict(options.profile or {}),
    )


class TensorRTBackend:
    """TensorRT or TensorRT-RTX on the current GPU.

    Engines are built on any machine that the library accepts; running one needs a GPU. That part
    has been run on fakes only.
    """

    int8_fallback: Precision = "fp16"

    def __init__(self, flavor: str | None = None, *, options: BuildOptions | None = None) -> None:
        """Takes the library's name, or None for the first that works, and how to build.

        Without options, kernels are timed once for all builds of this user (``timing_cache``).

        Raises:
            MissingDependencyError: If the library is not installed.
            DeviceError: If it cannot be imported.
        """
        self._api = load_api(flavor)
        self._options = options or BuildOptions(timing_cache=default_timing_cache())
        self.name = self._api.flavor

    def device(self) -> DeviceInfo:
        """Returns the GPU, its compute capability and the CUDA version. Raises ``DeviceError``."""
        cuda = find_cuda()
        settings = f"compute capability {cuda.compute_capability()}, CUDA {cuda.version()}"
        if self._options.tf32:
            settings += ", TF32"
        return DeviceInfo(self.name, self._api.version, gpu_name(cuda), settings)

    def precisions(self) -> tuple[Precision, ...]:
        """Returns all of them: the types in the graph decide."""
        return PRECISIONS

    def open(self, model: bytes, *, seed: int = 0) -> Runner:
        """Builds an engine and loads it. Raises ``DeviceError``, without a driver before building.

        The errors of ``build_engine`` come through as they are.
        """
        cuda = find_cuda()
        build = build_engine(model, api=self._api, options=self._options)
        return EngineRunner(self._api, cuda, build.plan, seed)


def load_engine(
    plan: bytes, api: TensorRTApi | None = None, *, seed: int = 0, batch: int | None = None
) -> Runner:
    """Returns a runner of a serialised engine. It executes code: check its sidecar first.

    Args:
        plan: The engine.
        api: The library; TensorRT where it works, else TensorRT-RTX.
        seed: Of the inputs that are timed.
        batch: First dimension of the inputs; None is the static one, or the profile's usual.

    Raises:
        UsageError: If the engine does not take this batch.
        DeviceError: If there is no driver, or the engine was built for another GPU or version.
    """
    return EngineRunner(api or load_api(), find_cuda(), plan, seed, batch=batch)


def _started(api: TensorRTApi, log: BuildLog) -> trt.Builder:
    try:
        builder: trt.Builder = api.module.Builder(log.sink)
    except Exception as error:  # without a driver TensorRT gives a TypeError about a null pointer
        raise DeviceError(
            f"{api.flavor} {api.version} cannot start a builder: {log.errors()} ({error}); "
            "type nvidia-smi to see the driver, or build with tensorrt_rtx, which needs none"
        ) from error
    return builder


def _parsed(
    api: TensorRTApi, builder: trt.Builder, model: bytes, log: BuildLog
) -> trt.INetworkDefinition:
    check_opset(api, model)
    network = builder.create_network(api.network_flags())
    parser: trt.OnnxParser = api.module.OnnxParser(network, log.sink)
    parsed = parser.parse(model)
    errors = api.parser_errors(parser)
    if not parsed or errors:
        probe = builder.create_network(api.network_flags())
        known = api.known_parts(api.module.OnnxParser(probe, log.sink), model)
        raise cannot_parse(api, errors, known, log)
    if network.num_outputs == 0:  # what the parser makes of b'' and of some text
        raise CorruptInputError("the ONNX model is empty; export the network again")
    return network


def _checked_precision(
    api: TensorRTApi, network: trt.INetworkDefinition, wanted: Precision | None
) -> Precision:
    found = api.network_precision(network)
    if wanted is None or wanted == found:
        return found
    raise UsageError(
        f"the model is typed {found}, not {wanted}, and the types decide what is built; "
        f"choose --precision {found}, or give the model of precision {wanted}"
    )
