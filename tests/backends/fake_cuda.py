"""A CUDA runtime and pycuda without a GPU: memory is the host's, time is scripted, manners are not.

Names, order of arguments and results follow cuda-python and pycuda; every call is noted in
``calls``. What runs is whatever a fake engine puts into the stream with ``work``. As on a GPU

- nothing is done before somebody waits for it: memory is as it was, an event has not passed (600),
  and a fault is told by whoever waits;
- a copy to the device is on its way until the device is waited for, and a stream that does not wait
  for the default one may come first;
- a capture forbids what would have to wait or to allocate (900), and is lost then (901);
- no two runs take the same time.
"""

import ctypes
import random
from types import ModuleType, SimpleNamespace

import pytest

WORDS = {
    2: "out of memory",
    35: "CUDA driver version is insufficient for CUDA runtime version",
    400: "invalid resource handle",
    600: "device not ready",
    700: "an illegal memory access was encountered",
    900: "operation not permitted when stream is capturing",
    901: "operation failed due to a previous error during capture",
}
SILENT = ("cudaGetErrorString", "cudaGetLastError")
UNSAFE = {"cudaMalloc", "cudaFree", "cudaMemcpy", "cudaDeviceSynchronize", "cudaStreamSynchronize"}
"""What a thread may not call while it captures, unless in relaxed mode."""

NOISE = 0.02


def about(ms):
    """Returns what equals a latency that is scripted as ``ms``, whatever the noise."""
    return pytest.approx(ms * (1 + NOISE / 2), rel=NOISE / 2)


class FakeCudaRuntime:
    """A CUDA runtime with cuda-python's convention.

    Args:
        fails: Status by function; a set of names means status 2.
        launch_ms: What launching takes; a graph counts as one launch.
        seed: Of the noise: each piece of work takes up to ``NOISE`` longer than is scripted.
    """

    cudaDeviceScheduleSpin, cudaStreamNonBlocking, cudaEventDefault = 1, 1, 0
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, fails=(), launch_ms=0.0, seed=0):
        self.fails = fails if isinstance(fails, dict) else dict.fromkeys(fails, 2)
        self.launch_ms, self.random = launch_ms, random.Random(seed)
        self.calls, self.dead, self.clock_ms = [], 0, 0.0
        self.memory, self.events, self.streams, self.graphs = {}, {}, set(), {}
        self.queue, self.copies = [], []  # of the stream, and of the default one
        self.recorded, self.lost = None, False  # what is being captured, and whether in vain

    def __getattribute__(self, name):
        found = object.__getattribute__(self, name)
        if not name.startswith("cuda") or not callable(found):
            return found

        def call(*arguments):
            self.calls.append(name)
            status = self.fails.get(name, 0) or (0 if name in SILENT else self.dead)
            if not status and self.recorded is not None and name in UNSAFE:
                status, self.lost = 900, True
            if status:
                return status, None
            result = found(*arguments)
            return result if name in SILENT or not self.dead else (self.dead, None)

        return call

    @property
    def held(self):
        """Everything that was not given back."""
        return len(self.memory) + len(self.events) + len(self.streams) + len(self.graphs)

    def work(self, run, run_ms):
        """Puts a piece of work into the stream, or into the graph that is being captured."""
        if self.recorded is not None:
            self.recorded.append((run, run_ms))
        else:
            self.queue.append(lambda: self._do([(run, run_ms)]))

    def _do(self, pieces):
        self.clock_ms += self.launch_ms
        for run, run_ms in pieces:
            self.clock_ms += run_ms * (1 + NOISE * self.random.random())
            run()

    @staticmethod
    def _drain(queue):
        while queue:
            queue.pop(0)()

    def cudaGetErrorString(self, status):
        return 0, WORDS.get(status, f"error {status}").encode()

    def cudaGetLastError(self):
        return (0,)

    def cudaGetDeviceCount(self):
        return 0, 1

    def cudaSetDeviceFlags(self, flags):
        return (0,)

    def cudaGetDevice(self):
        return 0, 0

    def cudaGetDeviceProperties(self, device):
        return 0, SimpleNamespace(name=b"Fake Orin", major=8, minor=7)

    def cudaRuntimeGetVersion(self):
        return 0, 12060

    def cudaMemGetInfo(self):
        return 0, 5 << 30, 8 << 30

    def cudaMalloc(self, size):
        buffer = ctypes.create_string_buffer(size)
        address = ctypes.addressof(buffer)
        self.memory[address] = buffer
        return 0, address

    def cudaFree(self, address):
        self._drain(self.copies)
        self._drain(self.queue)
        del self.memory[address]
        return (0,)

    def cudaMemcpy(self, target, source, size, kind):
        device = target if kind == 1 else source
        assert size <= len(self.memory[device])
        if kind == 1:
            data = ctypes.string_at(source, size)
            self.copies.append(lambda: ctypes.memmove(target, data, size))
        else:
            self._drain(self.copies)
            ctypes.memmove(target, source, size)
        return (0,)

    def cudaDeviceSynchronize(self):
        self._drain(self.copies)
        self._drain(self.queue)
        return (0,)

    def cudaStreamCreateWithFlags(self, flags):
        assert flags == self.cudaStreamNonBlocking
        self.streams.add(11)
        return 0, 11

    def cudaStreamDestroy(self, stream):
        self.streams.remove(stream)
        return (0,)

    def cudaStreamSynchronize(self, stream):
        assert stream in self.streams
        self._drain(self.queue)
        return (0,)

    def cudaEventCreateWithFlags(self, flags):
        handle = 100 + len([name for name in self.calls if name == "cudaEventCreateWithFlags"])
        self.events[handle] = "never recorded"
        return 0, handle

    def cudaEventRecord(self, event, stream):
        assert event in self.events and stream in self.streams
        if self.recorded is not None:
            self.events[event] = "part of a graph"
            return (0,)
        self.events[event] = mark = object()
        self.queue.append(lambda: self._pass(event, mark))
        return (0,)

    def _pass(self, event, mark):
        if self.events.get(event) is mark:  # neither recorded again since, nor destroyed
            self.events[event] = self.clock_ms

    def cudaEventElapsedTime(self, start, end):
        times = self.events[start], self.events[end]
        if any(isinstance(time, str) for time in times):
            return 400, None
        if not all(isinstance(time, float) for time in times):
            return 600, None
        return 0, times[1] - times[0]

    def cudaEventDestroy(self, event):
        del self.events[event]
        return (0,)

    def cudaStreamBeginCapture(self, stream, mode):
        assert mode == 1 and self.recorded is None and stream in self.streams
        self.recorded, self.lost = [], False
        return (0,)

    def cudaStreamEndCapture(self, stream):
        pieces, self.recorded = self.recorded, None
        if self.lost:
            return 901, None
        handle = 1000 + len(self.calls)
        self.graphs[handle] = pieces
        return 0, handle

    def cudaGraphInstantiateWithFlags(self, graph, flags):
        self.graphs[-graph] = self.graphs[graph]
        return 0, -graph

    def cudaGraphDestroy(self, graph):
        del self.graphs[graph]
        return (0,)

    def cudaGraphExecDestroy(self, graph):
        del self.graphs[graph]
        return (0,)

    def cudaGraphLaunch(self, graph, stream):
        assert self.recorded is None and stream in self.streams
        pieces = self.graphs[graph]
        self.queue.append(lambda: self._do(pieces))
        return (0,)


class FakeDriver(FakeCudaRuntime):
    """libcuda as ctypes sees it, on a GPU of compute capability 8.7.

    Attributes:
        calls: Names of the functions that were called.
        fails: Error code by function.
        capability: Value by attribute.
    """

    def __init__(self):
        super().__init__()
        self.capability, self.current = {75: 8, 76: 7}, None

    def __getattr__(self, name):
        function = getattr(FakeDriver, f"do_{name}")

        def call(*arguments):
            self.calls.append(name)
            if "Mem" in name or "Synchronize" in name:
                assert self.current == 77, "no context is current"
            return self.fails.get(name) or function(self, *arguments) or 0

        return call

    def do_cuInit(self, flags):
        assert flags == 0

    def do_cuDeviceGet(self, out, ordinal):
        out._obj.value = 5 + ordinal

    def do_cuDevicePrimaryCtxRetain(self, out, device):
        assert device.value == 5
        out._obj.value = 77

    def do_cuCtxSetCurrent(self, context):
        self.current = context.value

    def do_cuDeviceGetAttribute(self, out, attribute, device):
        assert device.value == 5
        out._obj.value = self.capability[attribute]

    def do_cuMemAlloc_v2(self, out, size):
        _, out._obj.value = self.cudaMalloc(size.value)

    def do_cuMemcpyHtoD_v2(self, target, source, size):
        assert isinstance(target, ctypes.c_uint64)
        self.cudaMemcpy(target.value, source.value, size.value, 1)

    def do_cuMemcpyDtoH_v2(self, target, source, size):
        assert isinstance(source, ctypes.c_uint64)
        self.cudaMemcpy(target.value, source.value, size.value, 2)

    def do_cuCtxSynchronize(self):
        self.cudaDeviceSynchronize()


def fake_pycuda(runtime, no_device=False):
    """Returns ``pycuda.driver`` over a fake runtime; ``stack`` holds the contexts made current."""

    class Error(Exception):
        pass

    class MemoryError(Error, __builtins__["MemoryError"]):
        pass

    def call(name, *arguments):
        status, *values = getattr(runtime, name)(*arguments)
        if status:
            kind = MemoryError if status == 2 else Error
            raise kind(f"{name.replace('cuda', 'cu')} failed: {WORDS[status]}")
        return values[0] if values else None

    class DeviceAllocation:
        def __init__(self, address):
            self.address = address

        def __int__(self):
            return self.address

        def free(self):
            call("cudaFree", self.address)

    class Stream:
        def __init__(self, flags=0):
            self.handle = call("cudaStreamCreateWithFlags", flags)

        def synchronize(self):
            call("cudaStreamSynchronize", self.handle)

        def __del__(self):
            runtime.streams.discard(self.handle)

    class Event:
        def __init__(self, flags=0):
            self.handle = call("cudaEventCreateWithFlags", flags)

        def record(self, stream=None):
            call("cudaEventRecord", self.handle, stream.handle)

        def time_till(self, end):
            return call("cudaEventElapsedTime", self.handle, end.handle)

        def __del__(self):
            runtime.events.pop(self.handle, None)

    class Context:
        def push(self):
            driver.stack.append(self)

        def pop(self):
            driver.stack.remove(self)

        @staticmethod
        def synchronize():
            call("cudaDeviceSynchronize")

    class Device:
        def __init__(self, ordinal):
            if no_device:
                raise Error("cuDeviceGet failed: invalid device ordinal")

        def name(self):
            return "Fake Orin"

        def compute_capability(self):
            return 8, 7

        def retain_primary_context(self):
            return Context()

    def place(buffer):
        """What the buffer protocol tells of it: address and bytes, or an error where read-only."""
        view = memoryview(buffer).cast("B")
        return ctypes.addressof(ctypes.c_char.from_buffer(view)), view.nbytes

    def memcpy_htod(address, buffer):
        source, size = place(buffer)
        call("cudaMemcpy", address, source, size, 1)

    def memcpy_dtoh(buffer, address):
        target, size = place(buffer)
        call("cudaMemcpy", target, address, size, 2)

    driver = ModuleType("pycuda.driver")
    driver.__dict__.update(
        stack=[],
        Error=Error,
        MemoryError=MemoryError,
        Context=Context,
        Device=Device,
        Event=Event,
        Stream=Stream,
        init=lambda: None,
        get_version=lambda: (12, 6, 0),
        mem_alloc=lambda size: DeviceAllocation(call("cudaMalloc", size)),
        mem_get_info=lambda: runtime.cudaMemGetInfo()[1:],
        memcpy_htod=memcpy_htod,
        memcpy_dtoh=memcpy_dtoh,
    )
    return driver
