#!/usr/bin/env python3
"""Checks the bundle that it lies in: every hash, then what the network computes.

It stands alone and runs on Python 3.8. It needs numpy and one of

- TensorRT (or TensorRT-RTX) on a machine with an NVIDIA GPU;
- ONNX Runtime.

Exit codes: 0 as it should be; 4 nothing can be run here, or not the engine with
``--require-engine``; 5 an output is wrong; 7 a file was changed or is missing.
"""

from __future__ import annotations

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [p for p in sys.path if os.path.abspath(p) != HERE]  # what lies here is data, no code

import argparse  # noqa: E402
import ctypes  # noqa: E402
import hashlib  # noqa: E402
import importlib  # noqa: E402
import io  # noqa: E402
import json  # noqa: E402
import time  # noqa: E402
import zipfile  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402

DEVICE, WRONG, CORRUPT = 4, 5, 7
TIMED_RUNS, WARM_UP = 50, 10
ENGINE = "the engine"
LARGEST_TOLERANCE = 0.2  # no precision needs more, whatever a manifest says
LIBRARIES = ("tensorrt", "tensorrt_rtx")
REBUILD = "type trt-layermerge rebuild"
AGAIN = "take the bundle again from where it was made"
LEAST = {"probabilities": 3e-3}  # what the largest value counts as: sigmoids are known to 1e-7
TINIEST = 1e-30  # what an output that should be zero everywhere counts as
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
DRIVER = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"


class Refused(Exception):
    """The bundle is not as it was packaged."""


class Unavailable(Exception):
    """Something cannot be run here."""


class Wrong(Exception):
    """Something computes another thing than it should."""


def read(name: str) -> bytes:
    """Returns a file of the bundle. Raises ``Refused``."""
    path = os.path.realpath(os.path.join(HERE, name))
    if not path.startswith(os.path.join(os.path.realpath(HERE), "")) or not os.path.isfile(path):
        raise Refused(f"{name} cannot be read (there is no such file in the bundle)")
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise Refused(f"{name} cannot be read ({error.strerror})") from error


def read_manifest() -> dict[str, Any]:
    """Returns the manifest. Raises ``Refused``."""
    try:
        body: dict[str, Any] = json.loads(read("manifest.json"))
        schema, digest = body["schema"], body.pop("sha256")
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"manifest.json is damaged ({error})") from error
    if schema != "trt-layermerge/bundle@1":
        raise Refused(f"manifest.json is of another version: {schema}")
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise Refused("manifest.json was changed: its hash is another one than the one in it")
    if not 0 < body["tolerance"] <= LARGEST_TOLERANCE:
        raise Refused(f"manifest.json allows a difference of {body['tolerance']}")
    return body


def checked_files(manifest: dict[str, Any]) -> dict[str, bytes]:
    """Returns every file by path. Raises ``Refused`` if one is not as it was packaged."""
    files = {name: read(name) for name in manifest["files"]}
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != manifest["files"][name]:
            raise Refused(f"{name} was changed: its hash is another one than in manifest.json")
    return files


class Cuda:
    """The first GPU, by the driver's own library, which is wherever a GPU works."""

    def __init__(self) -> None:
        """Raises ``Unavailable``."""
        try:
            self._driver = ctypes.CDLL(DRIVER)
        except OSError as error:
            raise Unavailable(f"there is no NVIDIA driver ({error})") from error
        self._device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        # The context that TensorRT uses too.
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._call("cuCtxSetCurrent", context)

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._driver, function)(*arguments)
        if code:
            raise Unavailable(f"{function} failed with CUDA error {code}")

    def capability(self) -> str:
        """Returns the compute capability, such as ``8.7``."""
        numbers = []
        for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
            number = ctypes.c_int()
            self._call("cuDeviceGetAttribute", ctypes.byref(number), attribute, self._device)
            numbers.append(str(number.value))
        return ".".join(numbers)

    def allocate(self, size: int) -> int:
        """Returns the address of new memory on the GPU, which the end of the process frees."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def upload(self, array: Any, address: int) -> None:
        """Copies an array to the GPU."""
        source, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), source, size)

    def download(self, address: int, array: Any) -> None:
        """Copies from the GPU into an array."""
        target, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyDtoH_v2", target, ctypes.c_uint64(address), size)

    def wait(self) -> None:
        """Waits until the GPU is done."""
        self._call("cuCtxSynchronize")


def imported(name: str) -> Any:
    """Returns a module. Raises ``Unavailable``."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # TensorRT without its libraries fails in several ways
        raise Unavailable(str(error).partition("\n")[0]) from error


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
    role = (sidecar["network"], sidecar["precision"], sidecar["origin"]["weights_sha256"])
    bound = role == ("merged", manifest["precision"], manifest["weights_sha256"])
    if not bound or hashlib.sha256(plan).hexdigest() != sidecar["plan_sha256"]:
        raise Refused("the engine's sidecar describes another engine")
    if sidecar["library"] not in LIBRARIES:  # a file does not say what is imported
        raise Refused(f"the engine's sidecar names no library: {sidecar['library']!r:.99}")
    library = imported(sidecar["library"])
    built, here, settings = sidecar["library_version"], library.__version__, sidecar["settings"]
    if built != here and not settings.get("version_compatible"):
        raise Unavailable(f"it was built with {sidecar['library']} {built}, not {here}; {REBUILD}")
    cuda = Cuda()
    wanted, found = sidecar["compute_capability"], cuda.capability()
    if wanted not in (None, found) and not settings.get("hardware_compatible"):
        raise Unavailable(f"it was built for compute capability {wanted}, not {found}; {REBUILD}")
    runtime = library.Runtime(library.Logger(library.Logger.ERROR))
    if settings.get("version_compatible"):  # such an engine brings a runtime of its own
        runtime.engine_host_code_allowed = True
    return load_plan(runtime, cuda, plan, manifest["interface"])


def zeros(interface: dict[str, Any], side: str) -> list[Any]:
    """Returns an array of zeros for every input or output of one run."""
    batch = interface["batch"]
    return [np.zeros((batch, *port["shape"]), port["type"]) for port in interface[side]]


def load_plan(
    runtime: Any, cuda: Cuda, plan: bytes, interface: dict[str, Any]
) -> Callable[[Any], Any]:
    """Returns a serialised engine, which is code, ready to run. Raises ``Unavailable``.

    Args:
        runtime: TensorRT's runtime.
        cuda: The GPU.
        plan: The serialised engine.
        interface: Names and shapes, as in the manifest.
    """
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise Unavailable(f"it cannot be loaded here; {REBUILD}")
    context = engine.create_execution_context()
    if context is None:
        raise Unavailable("there is not enough memory on the GPU to run it")
    inputs, outputs = (zeros(interface, side) for side in ("inputs", "outputs"))
    names = [port["name"] for side in ("inputs", "outputs") for port in interface[side]]
    places = [cuda.allocate(array.nbytes) for array in [*inputs, *outputs]]
    for name, array in zip(names, inputs):
        context.set_input_shape(name, array.shape)
    for name, place in zip(names, places):
        context.set_tensor_address(name, place)
    keep = (runtime, engine)  # for as long as the context is used

    def run(given: Any) -> Any:
        for array, place in zip(given, places):
            cuda.upload(np.ascontiguousarray(array), place)
        if not (keep and context.execute_async_v3(0)):
            raise Unavailable("TensorRT could not run it")
        cuda.wait()
        for array, place in zip(outputs, places[len(inputs) :]):
            cuda.download(place, array)
        return [array.copy() for array in outputs]

    return run


def open_onnx(manifest: dict[str, Any], files: dict[str, bytes]) -> Callable[[Any], Any]:
    """Returns the ONNX model, ready to run. Raises ``Unavailable``."""
    ort = imported("onnxruntime")
    interface = manifest["interface"]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # int8 as it is written
    model = files[manifest["roles"]["onnxruntime"]]
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library has no common class for its errors
        raise Unavailable(f"ONNX Runtime {ort.__version__} cannot load it ({error})") from error

    inputs, outputs = ([p["name"] for p in interface[side]] for side in ("inputs", "outputs"))

    def run(given: Any) -> Any:
        try:
            return session.run(outputs, dict(zip(inputs, given)))
        except Exception as error:
            raise Wrong(f"the ONNX model is not the one in manifest.json ({error})") from error

    return run


WAYS = ((ENGINE, open_engine), ("the ONNX model in ONNX Runtime", open_onnx))


def outputs_of(run: Callable[[Any], Any], given: Any, size: int) -> Any:
    """Returns every output for all images, run in batches that the last image fills up.

    Args:
        run: Runs one batch.
        given: Every input, ``(N, ...)``.
        size: Images per run.
    """
    rows = []
    for start in range(0, len(given[0]), size):
        chunk = [array[start : start + size] for array in given]
        count = len(chunk[0])
        filled = [np.concatenate([a, a[-1:].repeat(size - count, axis=0)]) for a in chunk]
        rows.append([output[:count] for output in run(filled)])
    return [np.concatenate(parts) for parts in zip(*rows)]


def samples_of(data: bytes, interface: dict[str, Any], precision: str) -> tuple[Any, Any]:
    """Returns inputs and expected outputs. Raises ``Refused``; pickles are not read."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return (
                [arrays[f"input_{i}"] for i in range(len(interface["inputs"]))],
                [arrays[f"output_{precision}_{i}"] for i in range(len(interface["outputs"]))],
            )
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise Refused(f"the expected outputs are damaged ({error})") from error


def difference(outputs: Any, expected: Any, kind: str) -> float:
    """Returns the largest difference over the largest expected value; infinite for nan.

    Of whole numbers, the share of those that differ. ``kind`` is the output's, as in the manifest.
    """
    if outputs.shape != expected.shape or not np.isfinite(outputs).all():
        return float("inf")
    if expected.dtype.kind != "f":
        return float((outputs != expected).mean())
    size = float(np.abs(outputs - expected).max())
    return size / max(float(np.abs(expected).max()), LEAST.get(kind, TINIEST))


def median_ms(run: Callable[[Any], Any], given: Any) -> float:
    """Returns the median wall time of a run in ms, copies included: a first impression."""
    times = []
    for _ in range(WARM_UP + TIMED_RUNS):
        start = time.perf_counter()
        run(given)
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times[WARM_UP:]))


def verify(
    manifest: dict[str, Any], files: dict[str, bytes], timed: bool
) -> tuple[dict[str, str], list[str]]:
    """Returns what was found by what was run, and why the rest was not run.

    Args:
        manifest: What stands in ``manifest.json``.
        files: Every file by path, checked.
        timed: Whether to tell the median time of a run too.

    Raises:
        Refused: If the expected outputs are damaged.
        Wrong: If an output differs by more than the manifest allows.
    """
    precision, allowed = manifest["precision"], manifest["tolerance"]
    interface = manifest["interface"]
    given, expected = samples_of(files[manifest["roles"]["expected"]], interface, precision)
    kinds = [port["kind"] for port in interface["outputs"]]
    found, left = {}, []
    for name, opening in WAYS:
        try:
            run = opening(manifest, files)
            size = max(map(difference, outputs_of(run, given, interface["batch"]), expected, kinds))
            took = (
                f" and takes {median_ms(run, zeros(interface, 'inputs')):.3f} ms" if timed else ""
            )
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
    except (AttributeError, KeyError, TypeError, ValueError) as error:
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
