"""A serialised engine on a GPU: run it, time it. Run on fakes only, never on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from trt_layermerge.backends.base import Array, Runner, check_inputs, random_inputs
from trt_layermerge.backends.cuda import Cuda
from trt_layermerge.backends.tensorrt_api import TensorRTApi
from trt_layermerge.errors import DeviceError


class EngineRunner(Runner):
    """One engine with static shapes, its buffers bound on the device."""

    def __init__(self, api: TensorRTApi, cuda: Cuda, plan: bytes, seed: int) -> None:
        """Takes library, GPU, serialised engine and the seed of the inputs that are timed.

        Raises:
            DeviceError: If the engine cannot be loaded here.
        """
        log = api.logger()
        runtime = api.module.Runtime(log)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise DeviceError(
                f"{api.flavor} {api.version} cannot load the engine: {log.errors()}. An engine "
                "belongs to one GPU and one version: build it again on this machine"
            )
        self._cuda, self._log = cuda, log
        self._keep: tuple[Any, ...] = (runtime, engine)  # the context needs both alive
        self._context = engine.create_execution_context()
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self._arrays = {name: _host_array(api, engine, name) for name in names}
        inputs = [n for n in names if engine.get_tensor_mode(n) == api.module.TensorIOMode.INPUT]
        self.input_shapes = {n: self._arrays[n].shape for n in inputs}
        self.output_names = tuple(n for n in names if n not in self.input_shapes)
        self._stream: Any = cuda.stream()
        self._addresses = {n: cuda.allocate(a.nbytes) for n, a in self._arrays.items()}
        for name, address in self._addresses.items():
            self._context.set_tensor_address(name, address)
        dtypes = {n: self._arrays[n].dtype for n in inputs}
        self._upload(random_inputs(self.input_shapes, dtypes, seed))

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Returns the outputs by name. Raises ``UsageError`` and ``DeviceError``."""
        check_inputs(self.input_shapes, inputs)
        self._upload(inputs)
        self._launch()
        self._cuda.wait(self._stream)
        outputs = {name: self._arrays[name].copy() for name in self.output_names}
        for name, array in outputs.items():
            self._cuda.download(array, self._addresses[name])
        return outputs

    def time_burst(self, count: int) -> list[float]:
        """Returns ms between the events around each of ``count`` launches in a row."""
        events = [self._cuda.event() for _ in range(count + 1)]
        self._cuda.record(events[0], self._stream)
        for event in events[1:]:
            self._launch()
            self._cuda.record(event, self._stream)
        self._cuda.wait(self._stream)
        times = [self._cuda.elapsed_ms(start, end) for start, end in pairwise(events)]
        self._cuda.destroy_events(events)
        return times

    def close(self) -> None:
        """Frees buffers, stream and engine."""
        for address in self._addresses.values():
            self._cuda.free(address)
        self._addresses = {}
        if self._stream is not None:
            self._cuda.destroy_stream(self._stream)
            self._stream = None
        self._context = None
        self._keep = ()

    def _upload(self, inputs: Mapping[str, Array]) -> None:
        for name, array in inputs.items():
            typed = np.ascontiguousarray(array, dtype=self._arrays[name].dtype)
            self._cuda.upload(self._addresses[name], typed)

    def _launch(self) -> None:
        if not self._context.execute_async_v3(int(self._stream)):
            raise DeviceError(f"the engine failed to run: {self._log.errors()}")


def _host_array(api: TensorRTApi, engine: Any, name: str) -> Array:
    """Returns an array of shape and type of a tensor. Raises ``DeviceError``."""
    shape = tuple(engine.get_tensor_shape(name))
    if -1 in shape:
        raise DeviceError(
            f"the engine's {name!r} has the dynamic shape {shape}, which is not timed; "
            "build it from a model with a static batch"
        )
    return np.zeros(shape, dtype=api.module.nptype(engine.get_tensor_dtype(name)))
