"""The CUDA bindings: one contract over fakes, and the real libraries where there is no driver."""

import ctypes
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from tests.backends.fake_cuda import WORDS, FakeCudaRuntime, about, fake_pycuda
from tests.gpus import NO_GPU
from trt_layermerge.backends import cuda_ctypes, cuda_pycuda, cuda_python
from trt_layermerge.backends.cuda import (
    BINDINGS,
    STICKY_CODES,
    Cuda,
    cuda_bindings,
    find_cuda,
)
from trt_layermerge.backends.cuda_pycuda import Pycuda
from trt_layermerge.errors import (
    DeviceError,
    MissingDependencyError,
    StickyDeviceError,
    UsageError,
)

no_driver = pytest.mark.skipif(not NO_GPU, reason="there is a CUDA driver here")


@pytest.fixture
def runtime():
    return FakeCudaRuntime()


def by_runtime(runtime):
    return Cuda(runtime, "fake")


def by_pycuda(runtime):
    Cuda(runtime, "ctypes")  # as open_cuda does
    return Cuda(Pycuda(fake_pycuda(runtime), runtime), "fake")


@pytest.fixture(params=[by_runtime, by_pycuda], ids=["runtime", "pycuda"])
def make(request):
    return request.param


def test_the_gpu_is_described(make, runtime):
    cuda = make(runtime)
    described = (cuda.device_name(), cuda.compute_capability(), cuda.version())
    assert described == ("Fake Orin", "8.7", "12.6")
    assert cuda.free_memory() == 5 << 30


def test_bytes_travel_both_ways(make, runtime):
    cuda = make(runtime)
    sent = np.arange(12, dtype=np.int16).reshape(3, 4)
    address = cuda.allocate(sent.nbytes)
    cuda.upload(address, sent)
    assert runtime.calls[-1] == "cudaDeviceSynchronize"
    back = np.empty_like(sent)
    cuda.download(back, address)
    np.testing.assert_array_equal(back, sent)
    cuda.free(address)
    assert runtime.held == 0


def test_work_in_a_stream_is_captured_launched_and_timed(make, runtime):
    cuda, done = make(runtime), []
    stream, start, end = cuda.stream(), cuda.event(), cuda.event()
    assert int(stream) == 11
    cuda.begin_capture(stream)
    for number in range(3):
        runtime.work(lambda number=number: done.append(number), 0.5)
    graph = cuda.end_capture(stream)
    assert done == []
    cuda.record(start, stream)
    cuda.launch_graph(graph, stream)
    cuda.record(end, stream)
    assert done == []
    with pytest.raises(DeviceError, match="device not ready"):
        cuda.elapsed_ms(start, end)
    cuda.wait(stream)
    assert done == [0, 1, 2]
    assert cuda.elapsed_ms(start, end) == about(1.5)
    cuda.destroy_graph(graph)
    for event in (start, end):
        cuda.destroy_event(event)
    cuda.destroy_stream(stream)
    del start, end, event
    assert runtime.held == 0


def test_what_is_uploaded_is_there_for_whatever_runs_next(make, runtime):
    """The stream does not wait for the default one, on which copies travel."""
    cuda, seen = make(runtime), []
    stream, address = cuda.stream(), cuda.allocate(4)
    cuda.upload(address, np.array([7], np.int32))
    runtime.work(lambda: seen.append(runtime.memory[address].raw), 0.5)
    cuda.wait(stream)
    assert np.frombuffer(seen[0], np.int32) == [7]
    runtime.work(lambda: ctypes.memmove(address, b"late", 4), 0.5)
    back = np.zeros(1, np.int32)
    cuda.download(back, address)
    assert back == [7]  # nobody has waited for the stream
    cuda.wait(stream)
    cuda.download(back, address)
    assert back.tobytes() == b"late"


@pytest.mark.parametrize("what", ["allocate", "upload", "wait"])
def test_a_capture_is_lost_by_what_has_to_wait(make, runtime, what):
    cuda = make(runtime)
    stream, address = cuda.stream(), cuda.allocate(4)
    forbidden = {
        "allocate": lambda: cuda.allocate(4),
        "upload": lambda: cuda.upload(address, np.zeros(1, np.int32)),
        "wait": lambda: cuda.wait(stream),
    }
    cuda.begin_capture(stream)
    with pytest.raises(DeviceError, match="not permitted when stream is capturing") as caught:
        forbidden[what]()
    assert not isinstance(caught.value, StickyDeviceError)
    with pytest.raises(DeviceError, match="due to a previous error during capture"):
        cuda.end_capture(stream)
    forbidden[what]()  # and then it may


def test_waiting_spins(make, runtime):
    """The flag counts only before the context is there, so it comes before anything else."""
    make(runtime)
    assert runtime.calls.index("cudaSetDeviceFlags") == 1
    refused = FakeCudaRuntime(fails={"cudaSetDeviceFlags": 708})
    make(refused).allocate(8)
    assert refused.calls[1:3] == ["cudaSetDeviceFlags", "cudaGetLastError"]


def test_out_of_memory_says_what_to_do_and_does_no_harm(make, runtime):
    cuda = make(runtime)
    runtime.fails = {"cudaMalloc": 2}
    with pytest.raises(DeviceError, match=r"failed: out of memory.*smaller --batch") as caught:
        cuda.allocate(1 << 40)
    assert not isinstance(caught.value, StickyDeviceError)
    runtime.fails = {}
    cuda.free(cuda.allocate(8))


def test_faults_that_end_the_process_are_told_apart(make, runtime):
    cuda = make(runtime)
    stream = cuda.stream()
    runtime.dead = 700
    for use in (lambda: cuda.wait(stream), lambda: cuda.allocate(8)):
        with pytest.raises(StickyDeviceError, match=r"illegal memory access.*in a new one"):
            use()
    runtime.dead = 901
    with pytest.raises(DeviceError, match="doctor") as caught:
        cuda.wait(stream)
    assert not isinstance(caught.value, StickyDeviceError)


def test_an_error_is_not_left_for_the_next_to_find(runtime):
    cuda = by_runtime(runtime)
    runtime.fails = {"cudaMalloc": 2}
    with pytest.raises(DeviceError):
        cuda.allocate(8)
    assert runtime.calls[-2] == "cudaGetLastError"


def test_no_gpu_is_refused():
    with pytest.raises(DeviceError, match=r"no CUDA driver or GPU .*\(out of memory\)"):
        by_runtime(FakeCudaRuntime(fails=["cudaGetDeviceCount"]))
    none = FakeCudaRuntime()
    none.cudaGetDeviceCount = lambda: (0, 0)
    with pytest.raises(DeviceError, match="it counts none"):
        by_runtime(none)
    with pytest.raises(DeviceError, match=r"no CUDA driver or GPU .*invalid device ordinal"):
        Cuda(Pycuda(fake_pycuda(FakeCudaRuntime(), no_device=True), None), "pycuda")


@pytest.mark.parametrize(("number", "words"), [(11040, "11.4"), (12060, "12.6"), (13000, "13.0")])
def test_versions_in_words(runtime, number, words):
    runtime.cudaRuntimeGetVersion = lambda: (0, number)
    assert by_runtime(runtime).version() == words


# pycuda


def test_pycuda_makes_one_context_current_however_often_it_is_asked(runtime):
    driver = fake_pycuda(runtime)
    for _ in range(3):
        Cuda(Pycuda(driver, None), "pycuda")
    assert len(driver.stack) == 1


def test_pycuda_leaves_no_context_behind():
    """Pycuda aborts a process that ends with a context on its stack."""
    code = (
        "import atexit\n"
        "from tests.backends.fake_cuda import FakeCudaRuntime, fake_pycuda\n"
        "from trt_layermerge.backends.cuda import Cuda\n"
        "from trt_layermerge.backends.cuda_pycuda import Pycuda\n"
        "driver = fake_pycuda(FakeCudaRuntime())\n"
        "atexit.register(lambda: print('left', driver.stack))\n"
        "Cuda(Pycuda(driver, None), 'pycuda')\n"
        "print('made', len(driver.stack))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n") == ["made 1", "left []", ""], done.stderr


def test_pycuda_without_the_runtime_has_no_graphs(runtime):
    cuda = Cuda(Pycuda(fake_pycuda(runtime), None), "pycuda", "no libcudart")
    assert cuda.no_graphs == "no libcudart"
    with pytest.raises(DeviceError, match="no libcudart"):
        cuda.begin_capture(cuda.stream())


def test_pycuda_captures_by_the_runtime_where_that_loads(monkeypatch, runtime):
    monkeypatch.setattr(cuda_pycuda, "_driver", lambda: fake_pycuda(runtime))
    monkeypatch.setattr(cuda_pycuda, "load_libcudart", lambda: None)
    monkeypatch.setattr(cuda_pycuda, "Libcudart", lambda library: runtime)
    assert find_cuda("pycuda").no_graphs is None

    def missing():
        raise DeviceError("libcudart was not found")

    monkeypatch.setattr(cuda_pycuda, "load_libcudart", missing)
    assert "libcudart was not found" in find_cuda("pycuda").no_graphs


def test_pycuda_that_does_not_import(monkeypatch):
    """Without a driver the real one warns, and then fails to load libcuda."""
    broken = ModuleType("pycuda")
    broken.__path__ = []
    monkeypatch.setitem(sys.modules, "pycuda", broken)

    def import_module(name):
        import warnings

        warnings.warn("Failed to import the CUDA driver interface", stacklevel=1)
        raise ImportError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(cuda_pycuda, "import_module", import_module)
    with pytest.raises(DeviceError, match=r"libcuda.so.1.*force-reinstall pycuda"):
        find_cuda("pycuda")


# The real libraries, where there is no driver


@no_driver
@pytest.mark.parametrize("binding", ["cuda-python", "ctypes"])
def test_the_real_bindings_say_that_there_is_no_driver(binding):
    if binding == "cuda-python":
        pytest.importorskip("cuda.bindings.runtime")
    with pytest.raises(DeviceError, match=r"no CUDA driver or GPU|libcudart was found"):
        find_cuda(binding)


@pytest.fixture(scope="module")
def libcudart():
    try:
        return cuda_ctypes.Libcudart(cuda_ctypes.load_libcudart())
    except DeviceError as error:
        pytest.skip(str(error))


def test_every_signature_is_a_function_of_the_real_library(libcudart):
    for name in cuda_ctypes._SIGNATURES:
        assert callable(getattr(libcudart, name))
    with pytest.raises(AttributeError, match="cudaFrobnicate"):
        _ = libcudart.cudaFrobnicate


@no_driver
def test_the_real_library_answers_without_a_driver(libcudart):
    status, version = libcudart.cudaRuntimeGetVersion()
    assert (status, version >= 11040) == (0, True)
    assert libcudart.cudaMalloc(8)[0] in (35, 100)
    assert libcudart.cudaGetDeviceProperties(0)[1] is None
    assert b"insufficient" in libcudart.cudaGetErrorString(35)[1]


def real_runtime(name):
    """The real library behind a binding."""
    if name == "ctypes":
        return cuda_ctypes.Libcudart(cuda_ctypes.load_libcudart())
    return pytest.importorskip("cuda.bindings.runtime")


@no_driver
@pytest.mark.parametrize("name", ["cuda-python", "ctypes"])
def test_the_real_libraries_take_every_call_as_it_is_made(name):
    """Without a driver each call fails, but only once its arguments were accepted."""

    class Counting:
        def __init__(self, real):
            self.real, self.reached = real, set()

        def __getattr__(self, function):
            found = getattr(self.real, function)
            if callable(found) and function.startswith("cuda"):
                self.reached.add(function)
            return found

        def cudaGetDeviceCount(self):
            return 0, 1

        def cudaGetDevice(self):
            return 0, 0

    real = Counting(real_runtime(name))
    cuda, array = Cuda(real, name), np.zeros(4)
    calls = [
        *(cuda.device_name, cuda.free_memory, cuda.stream, cuda.event, lambda: cuda.allocate(8)),
        *(lambda: cuda.upload(4096, array), lambda: cuda.download(array, 4096)),
        *(lambda: cuda.free(4096), lambda: cuda.wait(1), lambda: cuda.destroy_stream(1)),
        *(lambda: cuda.record(1, 2), lambda: cuda.elapsed_ms(1, 2), lambda: cuda.destroy_event(1)),
        *(lambda: cuda.begin_capture(1), lambda: cuda.end_capture(1)),
        *(lambda: cuda.launch_graph(1, 2), lambda: cuda.destroy_graph(1)),
        *(lambda: cuda._call("cudaGraphInstantiateWithFlags", 1, 0),),
        *(lambda: cuda._call("cudaGraphDestroy", 1), lambda: cuda._call("cudaDeviceSynchronize")),
    ]
    for call in calls:
        with pytest.raises(DeviceError, match=r"^cuda\w+ failed: "):
            call()
    assert cuda.version().count(".") == 1
    direct = {"cudaGetDeviceCount", "cudaGetDevice", "cudaDeviceGetAttribute"}
    assert real.reached >= cuda_ctypes._SIGNATURES.keys() - direct


def test_words_and_codes_of_sticky_errors_agree(libcudart):
    """By words only, as pycuda tells them; the runtime has the same words by code."""

    def by_words(code):
        text = libcudart.cudaGetErrorString(code)[1].decode()
        return any(words in text for words in cuda_pycuda._STICKY_WORDS)

    unknown = libcudart.cudaGetErrorString(123_456)
    known = {c for c in range(1000) if libcudart.cudaGetErrorString(c) != unknown}
    known.discard(53)  # "… in prior launch", not in use since CUDA 3.1
    assert {c for c in known if by_words(c)} == known & STICKY_CODES


def test_the_fake_uses_the_words_of_the_real_library(libcudart):
    assert {c: libcudart.cudaGetErrorString(c)[1].decode() for c in WORDS} == WORDS


# ctypes: a C library that keeps what it is given


class Library:
    """Looks like ctypes.CDLL: notes arguments, fills what is pointed to."""

    def __init__(self, **results):
        self.seen, self.results = [], results
        self.cudaGetErrorString = SimpleNamespace(restype=None)

    def __getattr__(self, name):
        def function(*arguments):
            filled = iter(self.results.get(name, ()))
            for argument in arguments:
                if hasattr(argument, "_obj"):
                    argument._obj.value = next(filled)
            plain = [a for a in arguments if not hasattr(a, "_obj")]
            self.seen.append((name, *(getattr(a, "value", a) for a in plain)))
            return 0

        return function


def test_inputs_keep_their_order_around_what_comes_out():
    library = Library(cudaMalloc=[4096], cudaStreamEndCapture=[77], cudaMemGetInfo=[3, 8])
    runtime = cuda_ctypes.Libcudart(library)
    assert runtime.cudaMalloc(64) == (0, 4096)
    assert runtime.cudaStreamEndCapture(11) == (0, 77)
    assert runtime.cudaMemGetInfo() == (0, 3, 8)
    assert runtime.cudaFree(4096) == (0,)
    assert library.seen == [
        ("cudaMalloc", 64),
        ("cudaStreamEndCapture", 11),
        ("cudaMemGetInfo",),
        ("cudaFree", 4096),
    ]


def test_the_name_of_a_gpu_is_how_its_properties_begin():
    library = Library(cudaDeviceGetAttribute=[8])

    def properties(buffer, device):
        ctypes.memmove(buffer, b"Orin\0 and more", 14)
        return 0

    library.cudaGetDeviceProperties = properties
    _, found = cuda_ctypes.Libcudart(library).cudaGetDeviceProperties(0)
    assert (found.name, found.major, found.minor) == (b"Orin", 8, 8)
    assert [call[1:] for call in library.seen] == [(75, 0), (76, 0)]


def test_a_wheel_of_the_runtime_is_found(monkeypatch, tmp_path):
    folder = tmp_path / "nvidia" / "cu12" / "lib"
    folder.mkdir(parents=True)
    (folder / "libcudart.so.12").write_bytes(b"no library")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    tried = []

    def load(place):
        tried.append(place)
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", load)
    with pytest.raises(DeviceError, match=r"nvidia-jetpack.*pip install 'trt-layermerge\[cuda\]'"):
        find_cuda("ctypes")
    assert tried[0] == "libcudart.so"
    assert tried[-1] == str(folder / "libcudart.so.12")


# Which binding


def scripted(monkeypatch, **problems):
    """Replaces what opens each binding; returns the list of those that were asked."""
    asked = []
    modules = {"cuda_python": cuda_python, "pycuda": cuda_pycuda, "ctypes": cuda_ctypes}
    for name, module in modules.items():

        def open_cuda(name=name):
            asked.append(name)
            if name in problems:
                raise problems[name]
            return name

        monkeypatch.setattr(module, "open_cuda", open_cuda)
    return asked


MISSING = MissingDependencyError("some", "this", "cuda")


def test_the_first_that_works_is_used(monkeypatch):
    asked = scripted(monkeypatch)
    assert find_cuda() == "cuda_python"
    assert asked == ["cuda_python"]
    scripted(monkeypatch, cuda_python=DeviceError("too new for the driver"), pycuda=MISSING)
    assert find_cuda() == "ctypes"
    assert cuda_bindings() == (
        ("cuda-python", "too new for the driver"),
        ("pycuda", str(MISSING)),
        ("ctypes", None),
    )


def test_what_is_installed_and_fails_is_told_first(monkeypatch):
    scripted(monkeypatch, cuda_python=MISSING, pycuda=DeviceError("dead"), ctypes=DeviceError("x"))
    with pytest.raises(DeviceError, match=r"^dead$"):
        find_cuda()


def test_unknown_bindings_are_refused():
    with pytest.raises(UsageError, match=r"'cupy'.*cuda-python, pycuda, ctypes"):
        find_cuda("cupy")


def test_no_binding_is_imported_before_it_is_needed():
    code = (
        "import sys, trt_layermerge.backends.cuda, trt_layermerge.backends.tensorrt\n"
        "import trt_layermerge.backends.cuda_python, trt_layermerge.backends.cuda_pycuda\n"
        "print([m for m in sys.modules if m.partition('.')[0] in ('cuda', 'pycuda')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


def test_a_binding_that_is_not_installed_names_its_extra(monkeypatch):
    def import_module(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    for module in (cuda_python, cuda_pycuda):
        monkeypatch.setattr(module, "import_module", import_module)
    with pytest.raises(MissingDependencyError, match=r"trt-layermerge\[cuda\]"):
        find_cuda("cuda-python")
    with pytest.raises(MissingDependencyError, match=r"trt-layermerge\[pycuda\]"):
        find_cuda("pycuda")
    assert len(BINDINGS) == 3


def test_an_older_cuda_python_is_found_where_it_was(monkeypatch, runtime):
    def import_module(name):
        if name == "cuda.cudart":
            return runtime
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(cuda_python, "import_module", import_module)
    assert find_cuda("cuda-python").device_name() == "Fake Orin"


def test_a_cuda_python_that_does_not_import(monkeypatch):
    def import_module(name):
        raise ImportError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(cuda_python, "import_module", import_module)
    with pytest.raises(DeviceError, match=r"does not import \(libcudart.so.12") as caught:
        find_cuda("cuda-python")
    assert not isinstance(caught.value, MissingDependencyError)
