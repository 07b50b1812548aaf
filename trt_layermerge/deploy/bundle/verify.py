#!/usr/bin/env python3
"""Checks the bundle that it lies in: every hash, then what the network computes.

It stands alone and runs on Python 3.8. It needs numpy and one of

- TensorRT (or TensorRT-RTX), with cuda-python, pycuda or the CUDA runtime library;
- ONNX Runtime.

Exit codes: 0 as it should be; 4 nothing can be run here, or not the engine with
``--require-engine``; 5 an output is wrong; 7 a file was changed or is missing.
"""

from __future__ import annotations

import argparse
import atexit
import ctypes
import glob
import hashlib
import importlib
import io
import json
import os
import sys
import time
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
DEVICE, WRONG, CORRUPT = 4, 5, 7
TIMED_RUNS, WARM_UP = 50, 10
ENGINE = "the engine"
REBUILD = "type trt-layermerge rebuild"
AGAIN = "take the bundle again from where it was made"
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
TO_DEVICE, TO_HOST = 1, 2
NO_DRIVER = (35, 100)
RESULTS: dict[str, Any] = {"cudaMalloc": ctypes.c_void_p, "cudaDeviceGetAttribute": ctypes.c_int}


class Refused(Exception):
    """The bundle is not as it was packaged."""


class Unavailable(Exception):
    """Something cannot be run here."""


class Wrong(Exception):
    """Something computes another thing than it should."""


def read(name: str) -> bytes:
    """Returns a file of the bundle. Raises ``Refused``."""
    try:
        with open(os.path.join(HERE, name), "rb") as file:
            return file.read()
    except OSError as error:
        raise Refused(f"{name} cannot be read ({error.strerror})") from error


def read_manifest() -> dict[str, Any]:
    """Returns the manifest. Raises ``Refused``."""
    try:
        body: dict[str, Any] = json.loads(read("manifest.json"))
        schema = body["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"manifest.json is damaged ({error})") from error
    if schema != "trt-layermerge/bundle@1":
        raise Refused(f"manifest.json is of another version: {schema}")
    return body


def checked_files(manifest: dict[str, Any]) -> dict[str, bytes]:
    """Returns every file by path. Raises ``Refused`` if one is not as it was packaged."""
    files = {name: read(name) for name in manifest["files"]}
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != manifest["files"][name]:
            raise Refused(f"{name} was changed: its hash is another one than in manifest.json")
    return files


class Runtime:
    """The CUDA runtime, by whatever leads to it.

    Args:
        name: Of the way that leads to it.
        call: Calls a function of the runtime by name; returns its error code and its result.
    """

    def __init__(self, name: str, call: Callable[..., tuple[int, Any]]) -> None:
        self._name, self._call = name, call

    def _checked(self, function: str, *arguments: Any) -> Any:
        code, result = self._call(function, *arguments)
        if code in NO_DRIVER:
            raise Unavailable(f"no NVIDIA driver or GPU ({self._name}, CUDA error {code})")
        if code:
            raise Unavailable(f"{function} failed with CUDA error {code} ({self._name})")
        return result

    def capability(self) -> str:
        """Returns the compute capability of the first GPU, such as ``8.7``."""
        major = self._checked("cudaDeviceGetAttribute", CAPABILITY_MAJOR, 0)
        return f"{major}.{self._checked('cudaDeviceGetAttribute', CAPABILITY_MINOR, 0)}"

    def allocate(self, size: int) -> int:
        """Returns the address of new memory on the GPU, which the end of the process frees."""
        return int(self._checked("cudaMalloc", size))

    def upload(self, array: Any, address: int) -> None:
        """Copies an array to the GPU."""
        self._checked("cudaMemcpy", address, array.ctypes.data, array.nbytes, TO_DEVICE)

    def download(self, address: int, array: Any) -> None:
        """Copies from the GPU into an array."""
        self._checked("cudaMemcpy", array.ctypes.data, address, array.nbytes, TO_HOST)

    def wait(self) -> None:
        """Waits until the GPU is done."""
        self._checked("cudaDeviceSynchronize")


def find_cuda() -> Any:
    """Returns the first way to CUDA that works. Raises ``Unavailable`` with all reasons."""
    reasons = []
    for way in (from_cuda_python, from_pycuda, from_library):
        try:
            cuda = way()
            cuda.capability()
            return cuda
        except Exception as error:  # each binding has errors of its own
            reasons.append(str(error).strip().partition("\n")[0])
    raise Unavailable(f"there is no working CUDA: {'; '.join(reasons)}")


def from_cuda_python() -> Runtime:
    """Returns the runtime by cuda-python, whose functions return a tuple with the code first."""
    runtime = imported("cuda.bindings.runtime", "cuda.cudart")

    def call(function: str, *arguments: Any) -> tuple[int, Any]:
        given = list(arguments)
        if function == "cudaMemcpy":
            given[3] = runtime.cudaMemcpyKind(given[3])
        elif function == "cudaDeviceGetAttribute":
            given[0] = runtime.cudaDeviceAttr(given[0])
        code, *result = getattr(runtime, function)(*given)
        return int(code), result[0] if result else None

    return Runtime("cuda-python", call)


def from_pycuda() -> Runtime:
    """Returns what pycuda has of the same, on the context that the CUDA runtime uses too."""
    driver = imported("pycuda.driver")
    driver.init()
    device, memory = driver.Device(0), []
    context = device.retain_primary_context()
    context.push()
    atexit.register(context.pop)  # pycuda aborts a process that ends with a context

    def call(function: str, *arguments: Any) -> tuple[int, Any]:
        if function == "cudaDeviceGetAttribute":
            return 0, device.compute_capability()[arguments[0] == CAPABILITY_MINOR]
        if function == "cudaMalloc":
            memory.append(driver.mem_alloc(*arguments))
            return 0, int(memory[-1])
        if function == "cudaMemcpy":
            target, source, size, kind = arguments
            here = source if kind == TO_DEVICE else target
            host = np.frombuffer((ctypes.c_char * size).from_address(here), np.uint8)
            if kind == TO_DEVICE:
                return 0, driver.memcpy_htod(target, host)
            return 0, driver.memcpy_dtoh(host, source)
        return 0, context.synchronize()

    return Runtime("pycuda", call)


def from_library() -> Runtime:
    """Returns the runtime by its shared library, which JetPack and wheels of TensorRT bring."""
    library = cuda_library()

    def call(function: str, *arguments: Any) -> tuple[int, Any]:
        # On 64-bit machines an int is passed as the lower half of a size.
        given: list[Any] = [ctypes.c_size_t(value) for value in arguments]
        if function not in RESULTS:
            return getattr(library, function)(*given), None
        result = RESULTS[function]()
        return getattr(library, function)(ctypes.byref(result), *given), result.value

    return Runtime("the CUDA runtime library", call)


def cuda_library() -> Any:
    """Returns libcudart: the system's, or that of a wheel. Raises ``Unavailable``."""
    names = ["libcudart.so", *(f"libcudart.so.{version}" for version in ("13", "12", "11.0"))]
    for folder in sys.path:
        names += sorted(glob.glob(os.path.join(folder, "nvidia", "*", "lib", "libcudart.so*")))
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise Unavailable("libcudart was not found")


def imported(*names: str) -> Any:
    """Returns the first module that can be imported. Raises ``Unavailable``."""
    why = ""
    for name in names:
        try:
            return importlib.import_module(name)
        except Exception as error:  # TensorRT without its libraries fails in several ways
            why = str(error).partition("\n")[0]
    raise Unavailable(why)


def open_engine(manifest: dict[str, Any], files: dict[str, bytes]) -> Callable[[Any], Any]:
    """Returns the engine, ready to run.

    Raises:
        Refused: If its sidecar describes another engine.
        Unavailable: If there is none, or it does not fit this machine.
    """
    roles = manifest["roles"]
    if "engine" not in roles:
        raise Unavailable(f"the bundle has none ({manifest['why_no_engine']})")
    plan, sidecar = files[roles["engine"]], json.loads(files[roles["sidecar"]])
    if hashlib.sha256(plan).hexdigest() != sidecar["plan_sha256"]:
        raise Refused("the engine's sidecar describes another engine")
    library = imported(sidecar["library"])
    built, here, settings = sidecar["library_version"], library.__version__, sidecar["settings"]
    if built != here and not settings.get("version_compatible"):
        raise Unavailable(f"it was built with {sidecar['library']} {built}, not {here}; {REBUILD}")
    cuda = find_cuda()
    wanted, found = sidecar["compute_capability"], cuda.capability()
    if wanted not in (None, found) and not settings.get("hardware_compatible"):
        raise Unavailable(f"it was built for compute capability {wanted}, not {found}; {REBUILD}")
    runtime = library.Runtime(library.Logger(library.Logger.ERROR))
    if settings.get("version_compatible"):  # such an engine brings a runtime of its own
        runtime.engine_host_code_allowed = True
    return load_plan(runtime, cuda, plan, manifest["interface"])


def load_plan(
    runtime: Any, cuda: Any, plan: bytes, interface: dict[str, Any]
) -> Callable[[Any], Any]:
    """Returns a serialised engine, which is code, ready to run. Raises ``Unavailable``."""
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise Unavailable(f"it cannot be loaded here; {REBUILD}")
    context = engine.create_execution_context()
    shape = (interface["batch"], *interface["image"])
    output = np.empty((shape[0], interface["classes"]), np.float32)
    source, target = cuda.allocate(4 * int(np.prod(shape))), cuda.allocate(output.nbytes)
    context.set_input_shape(interface["input"], shape)
    context.set_tensor_address(interface["input"], source)
    context.set_tensor_address(interface["output"], target)
    keep = (runtime, engine)  # for as long as the context is used

    def run(images: Any) -> Any:
        cuda.upload(np.ascontiguousarray(images), source)
        if not (keep and context.execute_async_v3(0)):
            raise Unavailable("TensorRT could not run it")
        cuda.wait()
        cuda.download(target, output)
        return output.copy()

    return run


def open_onnx(manifest: dict[str, Any], files: dict[str, bytes]) -> Callable[[Any], Any]:
    """Returns the ONNX model, ready to run. Raises ``Unavailable``."""
    ort = imported("onnxruntime")
    interface = manifest["interface"]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    model = files[manifest["roles"]["onnxruntime"]]
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library has no common class for its errors
        raise Unavailable(f"ONNX Runtime {ort.__version__} cannot load it ({error})") from error

    def run(images: Any) -> Any:
        try:
            return session.run([interface["output"]], {interface["input"]: images})[0]
        except Exception as error:
            raise Wrong(f"the ONNX model is not the one in manifest.json ({error})") from error

    return run


WAYS = ((ENGINE, open_engine), ("the ONNX model in ONNX Runtime", open_onnx))


def outputs_of(run: Callable[[Any], Any], images: Any, size: int) -> Any:
    """Returns the outputs for all images, run in batches that the last image fills up."""
    rows = []
    for start in range(0, len(images), size):
        chunk = images[start : start + size]
        filled = np.concatenate([chunk, chunk[-1:].repeat(size - len(chunk), axis=0)])
        rows.append(run(filled)[: len(chunk)])
    return np.concatenate(rows)


def samples_of(data: bytes, name: str) -> tuple[Any, Any]:
    """Returns inputs and expected outputs. Raises ``Refused``; pickles are not read."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return arrays["input"], arrays[name]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise Refused(f"the expected outputs are damaged ({error})") from error


def difference(outputs: Any, expected: Any) -> float:
    """Returns the largest difference over the largest expected output; infinite for nan."""
    if outputs.shape != expected.shape or not np.isfinite(outputs).all():
        return float("inf")
    return float(np.abs(outputs - expected).max() / np.abs(expected).max())


def median_ms(run: Callable[[Any], Any], shape: tuple[int, ...]) -> float:
    """Returns the median wall time of a run in ms, copies included: a first impression."""
    images, times = np.zeros(shape, np.float32), []
    for _ in range(WARM_UP + TIMED_RUNS):
        start = time.perf_counter()
        run(images)
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times[WARM_UP:]))


def verify(
    manifest: dict[str, Any], files: dict[str, bytes], timed: bool
) -> tuple[dict[str, str], list[str]]:
    """Returns what was found by what was run, and why the rest was not run.

    Raises:
        Refused: If the expected outputs are damaged.
        Wrong: If an output differs by more than the manifest allows.
    """
    precision, allowed = manifest["precision"], manifest["tolerance"]
    images, expected = samples_of(files[manifest["roles"]["expected"]], f"output_{precision}")
    shape = (manifest["interface"]["batch"], *manifest["interface"]["image"])
    found, left = {}, []
    for name, opening in WAYS:
        try:
            run = opening(manifest, files)
            size = difference(outputs_of(run, images, shape[0]), expected)
            took = f" and takes {median_ms(run, shape):.3f} ms" if timed else ""
        except Unavailable as error:
            left.append(f"{name} was not run: {error}")
            continue
        words = f"{name} differs by {size:.1e} of the largest output"
        if not size <= allowed:
            raise Wrong(f"{words}, {allowed:.0e} is allowed at {precision}")
        found[name] = words + took
    return found, left


def main(arguments: list[str] | None = None) -> int:
    """Checks the bundle, prints a paragraph and returns the exit code."""
    parser = argparse.ArgumentParser(description="Checks the bundle that this file lies in.")
    parser.add_argument("--require-engine", action="store_true", help="end with 4 unless it runs")
    parser.add_argument("--time", action="store_true", help="show a quick latency")
    options = parser.parse_args(arguments)
    try:
        manifest = read_manifest()
        found, left = verify(manifest, checked_files(manifest), options.time)
        title = "{name} ({precision}, for {target})".format(**manifest)
    except Refused as error:
        return fail(CORRUPT, f"{error}; {AGAIN}")
    except Wrong as error:
        return fail(WRONG, f"{error}; do not deploy it: build it again ({REBUILD})")
    except (KeyError, TypeError, AttributeError) as error:
        return fail(CORRUPT, f"manifest.json is damaged ({error!r}); {AGAIN}")
    if not found or (options.require_engine and ENGINE not in found):
        return fail(DEVICE, f"{title}: {'; '.join(left)}")
    sentences = [
        f"{title}: {len(manifest['files'])} files are as packaged",
        f"On two inputs {' and '.join(found.values())}; {manifest['tolerance']:.0e} is allowed",
        *(text[0].upper() + text[1:] for text in left),
    ]
    print(". ".join(sentences) + ".")
    return 0


def fail(code: int, text: str) -> int:
    """Prints an error and returns its code."""
    print(f"error: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
