"""A serialised engine on a GPU: run it, time it. Run on fakes only, never on a GPU.

Short runs are timed by the group: one CUDA graph holds as many of them as last about a
millisecond, twenty at most, so that neither launching nor the grain of events (about 0.5 µs)
shows. Inputs and outputs stay on the device meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from math import ceil
from statistics import median
from time import perf_counter
from typing import Any, Callable

import numpy as np

from trt_layermerge.backends.base import Array, Runner, check_inputs, random_inputs
from trt_layermerge.backends.cuda import Cuda
from trt_layermerge.backends.tensorrt_api import TensorRTApi
from trt_layermerge.backends.tensorrt_tensors import EngineTensor, engine_tensors
from trt_layermerge.errors import DeviceError

GROUP_MS = 1.0
LARGEST_GROUP = 20
_LOOKS = 5


class EngineRunner(Runner):
    """One engine with its buffers bound on the device.

    Attributes:
        group: Runs that are timed together; known once something has been timed.
        no_graph: Why nothing is timed by a graph, or None.
    """

    warmup_ms = 200.0
    method = "enqueue"

    def __init__(
        self,
        api: TensorRTApi,
        cuda: Cuda,
        plan: bytes,
        seed: int,
        *,
        batch: int | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """Loads an engine, which executes what is in it, and binds random inputs.

        Args:
            api: The library.
            cuda: The GPU.
            plan: The serialised engine.
            seed: Of the inputs that are timed.
            batch: First dimension of the inputs; None is the static one, or the profile's usual.
            clock: Seconds of the host's clock.

        Raises:
            UsageError: If the engine does not take this batch.
            DeviceError: If it cannot be loaded here.
        """
        self._api, self._cuda, self._clock, self._log = api, cuda, clock, api.logger()
        self._undo: list[Callable[[], object]] = []  # from the first made to the last
        self._kept: list[Any] = []
        self._events: list[Any] = []
        self._graph: Any = None
        self.group = 0
        self.no_graph: str | None = None
        try:
            self._load(plan)
            self._bind(batch, seed)
        except BaseException:
            self._release()
            raise

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Returns the outputs by name. Raises ``UsageError`` and ``DeviceError``."""
        check_inputs(self.input_shapes, inputs)
        other = [t.name for t in self._tensors.values() if not t.linear]
        if other:
            raise DeviceError(
                f"the engine has {', '.join(other)} in a layout of its own, which is only timed; "
                "build it without free I/O formats"
            )
        self._upload(inputs)
        self._run()
        outputs = {name: self._tensors[name] for name in self.output_names}
        arrays = {name: np.empty(t.shape, t.dtype) for name, t in outputs.items()}
        for name, array in arrays.items():
            self._cuda.download(array, self._addresses[name])
        return arrays

    def time_burst(self, count: int) -> list[float]:
        """Returns ms of each of ``count`` runs in a row, those of a group alike.

        The first call prepares the graph. Raises ``DeviceError``, ``StickyDeviceError`` where the
        process cannot use the GPU any more.
        """
        if not self.group:
            self._prepare()
        events = self._marks(ceil(count / self.group) + 1)
        self._cuda.record(events[0], self._stream)
        try:
            for event in events[1:]:
                self._launch_group()
                self._cuda.record(event, self._stream)
        finally:  # a fault of the GPU is told rather than what TensorRT makes of it
            self._cuda.wait(self._stream)
        spans = zip(events, events[1:])
        times = [self._cuda.elapsed_ms(start, end) / self.group for start, end in spans]
        return [ms for ms in times for _ in range(self.group)][:count]

    def close(self) -> None:
        """Frees graph, events, buffers, stream and engine, even if one of them fails.

        Raises:
            DeviceError: The first failure.
        """
        errors = self._release()
        if errors:
            raise errors[0]

    def __exit__(self, kind: object = None, error: object = None, *_: object) -> None:
        """Closes; an error that is on its way is not hidden by those of closing."""
        errors = self._release()
        if errors and error is None:
            raise errors[0]

    def _keep(self, thing: Any) -> Any:
        """Keeps a part of the library until it is this one's turn to be let go."""
        self._kept.append(thing)
        self._undo.append(self._kept.pop)
        return thing

    def _load(self, plan: bytes) -> None:
        runtime = self._keep(self._api.module.Runtime(self._log.sink))
        if hasattr(runtime, "engine_host_code_allowed"):  # from 8.6 on
            runtime.engine_host_code_allowed = True  # what version-compatible engines bring along
        engine = self._keep(runtime.deserialize_cuda_engine(plan))
        if engine is None:
            raise DeviceError(
                f"{self._api.flavor} {self._api.version} cannot load the engine: "
                f"{self._log.errors()}. An engine belongs to one GPU and one version: build it "
                "again on this machine"
            )
        if self._keep(engine.create_execution_context()) is None:
            raise DeviceError(
                f"the engine is loaded, but gets no memory to run in: {self._log.errors()}. End "
                "other programs that use the GPU, or choose a smaller --batch"
            )

    def _bind(self, batch: int | None, seed: int) -> None:
        cuda, (_, engine, context) = self._cuda, self._kept
        tensors = engine_tensors(self._api, engine, context, batch)
        inputs = [t for t in tensors if t.is_input]
        self.input_shapes = {t.name: t.shape for t in inputs}
        self.output_names = tuple(t.name for t in tensors if not t.is_input)
        self._stream = cuda.stream()
        self._undo.append(partial(cuda.destroy_stream, self._stream))
        self._tensors: dict[str, EngineTensor] = {t.name: t for t in tensors}
        self._addresses: dict[str, int] = {}
        for tensor in tensors:
            address = cuda.allocate(tensor.size_bytes)
            self._undo.append(partial(cuda.free, address))
            self._addresses[tensor.name] = address
            context.set_tensor_address(tensor.name, address)
        self._undo.append(partial(cuda.wait, self._stream))
        shapes = {t.name: t.shape if t.linear else (t.elements,) for t in inputs}
        self._upload(random_inputs(shapes, {t.name: t.dtype for t in inputs}, seed))

    def _upload(self, inputs: Mapping[str, Array]) -> None:
        for name, array in inputs.items():
            typed = np.ascontiguousarray(array, dtype=self._tensors[name].dtype)
            self._cuda.upload(self._addresses[name], typed)

    def _enqueue(self) -> None:
        if not self._kept[-1].execute_async_v3(int(self._stream)):
            raise DeviceError(f"the engine failed to run: {self._log.errors()}")

    def _run(self) -> None:
        """Runs once and waits."""
        try:
            self._enqueue()
        finally:
            self._cuda.wait(self._stream)

    def _launch_group(self) -> None:
        if self._graph is not None:
            self._cuda.launch_graph(self._graph, self._stream)
            return
        for _ in range(self.group):
            self._enqueue()

    def _prepare(self) -> None:
        """Looks how long a run and its launch take, and captures a group of runs if possible."""
        self._run()  # what the library does only once cannot be captured
        start, end = self._marks(2)
        launches, runs = [], []
        for _ in range(_LOOKS):
            self._cuda.record(start, self._stream)
            started = self._clock()
            self._enqueue()
            launches.append(1000 * (self._clock() - started))
            self._cuda.record(end, self._stream)
            self._cuda.wait(self._stream)
            runs.append(self._cuda.elapsed_ms(start, end))
        self.enqueue_ms = median(launches)
        self.group = group_size(min(runs))
        try:
            self._capture()
        except DeviceError as error:
            self.no_graph = str(error)
            self._run()  # whether it still runs without one; after a fault it does not

    def _capture(self) -> None:
        """Makes a graph of a group of runs, and runs it. Raises ``DeviceError`` if it cannot."""
        cuda, stream = self._cuda, self._stream
        cuda.begin_capture(stream)
        try:
            for _ in range(self.group):
                self._enqueue()
        except DeviceError:
            with suppress(DeviceError):  # the stream has to leave its capture either way
                cuda.destroy_graph(cuda.end_capture(stream))
            raise
        graph = cuda.end_capture(stream)
        self._undo.append(partial(cuda.destroy_graph, graph))
        cuda.launch_graph(graph, stream)
        cuda.wait(stream)
        self._graph, self.method = graph, "graph"

    def _marks(self, count: int) -> list[Any]:
        """Returns so many events, which are kept for the next time."""
        while len(self._events) < count:
            event = self._cuda.event()
            self._undo.append(partial(self._cuda.destroy_event, event))
            self._events.append(event)
        return self._events[:count]

    def _release(self) -> list[DeviceError]:
        """Gives everything back, the last made first; returns what failed."""
        errors = []
        while self._undo:
            try:
                self._undo.pop()()
            except DeviceError as error:
                errors.append(error)
        return errors


def group_size(run_ms: float) -> int:
    """Returns how many runs of so many ms are timed together."""
    return min(LARGEST_GROUP, max(1, ceil(GROUP_MS / max(run_ms, 1e-6))))
