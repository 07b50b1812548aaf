"""``verify.py`` alone: in a process without anything else, and with fakes of GPU and TensorRT."""

import ctypes
import importlib.util
import json
import subprocess
import sys
import venv
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from tests.backends.fake_cuda import FakeDriver
from tests.backends.fake_engine import FakeContext, FakeEngine, fake_library
from tests.backends.fake_tensorrt import VERSIONS, Strict
from tests.deploy.bundles import contents, network, several, signed, with_plan
from trt_layermerge.core.agreement import LEAST_PROBABILITY
from trt_layermerge.core.jsonio import sha256_bytes
from trt_layermerge.deploy.bundle import verify as program
from trt_layermerge.deploy.bundle.contents import TARGETS
from trt_layermerge.deploy.bundle.folder import write_bundle
from trt_layermerge.deploy.bundle.render import VERIFY, render
from trt_layermerge.deploy.machine import Machine

ALONE = """
import sys
allowed = {allowed!r}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in allowed:
            raise ImportError(name + " is blocked in this test")
sys.meta_path.insert(0, Blocker())
import runpy
sys.argv = {argv!r}
runpy.run_path({script!r}, run_name="__main__")
"""
# What pip installs with onnxruntime.
RUNTIME = {"onnxruntime", "google", "flatbuffers", "packaging", "sympy", "mpmath"}
RUNTIME |= {"coloredlogs", "humanfriendly"}


def alone(bundle, *options, allowed=RUNTIME):
    """Runs ``verify.py`` where only numpy, the standard library and ``allowed`` can be imported."""
    script = str(bundle / VERIFY)
    code = ALONE.format(allowed={"numpy", *allowed}, argv=[script, *options], script=script)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/"
    )


@pytest.fixture(scope="module")
def rtx():
    return with_plan(contents(), library="tensorrt_rtx", machine=Machine())


@pytest.fixture
def bundle(rtx, tmp_path):
    path = tmp_path / "net"
    write_bundle(path, render(rtx, "plain"))
    return path


def changed(bundle, role, data):
    """Writes a file and its hash, as somebody would who packages the wrong thing."""
    body = json.loads((bundle / "manifest.json").read_text())
    name = body["roles"][role]
    (bundle / name).write_bytes(data)
    body["files"][name] = sha256_bytes(data)
    (bundle / "manifest.json").write_text(signed(body))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("max_batch", [None, 4])
def test_passes_with_numpy_and_onnx_runtime_alone(target, max_batch, tmp_path):
    given = with_plan(
        contents(normalise=True, softmax=True, max_batch=max_batch),
        library="tensorrt_rtx",
        machine=Machine(),
    )
    write_bundle(tmp_path / "b", render(given, target))
    done = alone(tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"net (fp16, for {target}): ")
    assert "differs by 0.0e+00" in done.stdout
    assert "The engine was not run: tensorrt_rtx is blocked" in done.stdout
    assert done.stdout.count("\n") == 1 and done.stderr == ""


@pytest.mark.parametrize("max_batch", [None, 4])
def test_every_output_is_compared(max_batch, tmp_path):
    given = several(max_batch=max_batch)
    write_bundle(tmp_path / "b", render(given, "triton"))
    done = alone(tmp_path / "b", "--time")
    assert done.returncode == 0, done.stderr
    assert "differs by 0.0e+00" in done.stdout and " and takes 0." in done.stdout
    expected = given.samples.outputs["fp32"]
    for place, change in enumerate((1.01, 1.01, 0)):  # of whole numbers one other is enough
        other = [array.copy() for array in expected]
        other[place][1] = other[place][1] * change if change else other[place][1] + 1
        samples = replace(given.samples, outputs={"fp32": tuple(other)})
        wrong = render(replace(given, samples=samples), "triton")["expected.npz"]
        changed(tmp_path / "b", "expected", wrong)
        done = alone(tmp_path / "b")
        assert done.returncode == 5, done.stdout
        assert "of the largest output, 1e-03 is allowed at fp32" in done.stderr


def test_a_bundle_without_an_engine_says_so(tmp_path):
    write_bundle(tmp_path / "b", render(contents(), "plain"))
    done = alone(tmp_path / "b", "--time")
    assert done.returncode == 0
    assert "the bundle has none (nobody built one)" in done.stdout
    assert " and takes 0." in done.stdout


def test_nothing_to_run_it_with_is_4(bundle):
    done = alone(bundle, allowed=())
    assert (done.returncode, done.stdout) == (4, "")
    assert "tensorrt_rtx is blocked" in done.stderr and "onnxruntime is blocked" in done.stderr


def test_a_required_engine_that_cannot_run_is_4(bundle):
    done = alone(bundle, "--require-engine")
    assert done.returncode == 4
    assert "the engine was not run" in done.stderr


def test_every_changed_or_missing_file_is_7(bundle):
    names = list(json.loads((bundle / "manifest.json").read_text())["files"])
    assert {"model.fp16.plan", "model.fp16.onnx", "expected.npz", "recipe.yaml"} < set(names)
    for name in ("model.fp16.plan", "model.fp16.onnx", "expected.npz", "model.fp16.json"):
        path = bundle / name
        good = path.read_bytes()
        path.write_bytes(bytes([good[0] ^ 1]) + good[1:])
        done = alone(bundle)
        assert (done.returncode, done.stdout) == (7, ""), name
        assert f"error: {name} was changed" in done.stderr
        path.write_bytes(good)
    (bundle / "recipe.yaml").unlink()
    done = alone(bundle)
    assert done.returncode == 7
    assert "recipe.yaml cannot be read" in done.stderr


@pytest.mark.parametrize(
    "text", ["", "[]", '{"schema": 1}', '{"schema":"trt-layermerge/bundle@1"}']
)
def test_a_damaged_manifest_is_7(bundle, text):
    (bundle / "manifest.json").write_text(text)
    done = alone(bundle)
    assert done.returncode == 7
    assert done.stderr.startswith("error: manifest.json is") and "Traceback" not in done.stderr


def test_another_engines_sidecar_is_7(bundle):
    body = json.loads((bundle / "model.fp16.json").read_text())
    changed(bundle, "sidecar", json.dumps({**body, "plan_sha256": "0" * 64}).encode())
    done = alone(bundle)
    assert done.returncode == 7
    assert "describes another engine" in done.stderr


@pytest.mark.parametrize("name", ["evilmod", "tensorrt_rtx", "numpy", "json", "onnxruntime"])
def test_nothing_that_lies_in_the_bundle_is_executed(bundle, name):
    """Whether a sidecar names it or the script would import it: what lies there is data."""
    (bundle / f"{name}.py").write_text("raise SystemExit('was executed')\n")
    body = json.loads((bundle / "model.fp16.json").read_text())
    changed(bundle, "sidecar", json.dumps({**body, "library": name}).encode())
    command = [sys.executable, bundle / VERIFY]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "was executed" not in done.stderr
    refused = "" if name == "tensorrt_rtx" else f"the engine's sidecar names no library: '{name}'"
    assert refused in done.stderr
    assert done.returncode == (0 if name == "tensorrt_rtx" else 7)


def test_a_network_that_computes_something_else_is_5(bundle, rtx):
    changed(bundle, "onnx", rtx.models["fp32"])  # near enough to fp16
    assert alone(bundle).returncode == 0
    changed(bundle, "onnx", network(seed=1))
    done = alone(bundle)
    assert (done.returncode, done.stdout) == (5, "")
    assert "of the largest output, 1e-02 is allowed at fp16; do not deploy it" in done.stderr
    changed(bundle, "onnx", render(contents(softmax=True), "plain")["model.fp16.onnx"])
    done = alone(bundle)
    assert done.returncode == 5
    assert "not the one in manifest.json" in done.stderr


@pytest.mark.parametrize(("factor", "code"), [(1.005, 0), (1.02, 5), (float("nan"), 5), (0.0, 5)])
def test_the_tolerance_is_the_stated_one(bundle, rtx, factor, code):
    """1e-2 of the largest output at fp16: half of it passes, twice does not."""
    outputs = {k: (v * np.float32(factor),) for k, (v,) in rtx.samples.outputs.items()}
    samples = replace(rtx.samples, outputs=outputs)
    changed(bundle, "expected", render(replace(rtx, samples=samples), "plain")["expected.npz"])
    done = alone(bundle)
    assert done.returncode == code, done.stdout + done.stderr
    if code:
        assert "1e-02 is allowed at fp16; do not deploy it" in done.stderr


def test_pickles_are_not_read(bundle, rtx):
    array = np.array([print], dtype=object)
    path = bundle / "expected.npz"
    np.savez(path, input_0=array, output_fp16_0=array)
    changed(bundle, "expected", path.read_bytes())
    done = alone(bundle)
    assert done.returncode == 7
    assert "allow_pickle=False" in done.stderr


# With fakes of CUDA and TensorRT, in this process.


class Answering(FakeEngine):
    """Gives the rows of ``answers`` for the rows of ``inputs``, whatever the batch."""

    def __init__(self, runtime, inputs, answers):
        super().__init__(runtime, shape=(1, *inputs.shape[1:]))
        self.inputs, self.answers = inputs, answers

    def create_execution_context(self):
        return Strict(self.names, "IExecutionContext", AnsweringContext(self))


class AnsweringContext(FakeContext):
    def execute_async_v3(self, stream_handle):
        engine = self.engine
        assert stream_handle == 0
        if engine.refuses == "run":
            return False
        engine.runtime.work(self.answer, engine.run_ms)
        return True

    def answer(self):
        engine = self.engine
        size = 4 * int(np.prod(self.shape))
        found = np.frombuffer(ctypes.string_at(self.addresses["input"], size), np.float32)
        rows = [
            engine.answers[int(np.abs(engine.inputs - image).sum((1, 2, 3)).argmin())]
            for image in found.reshape(self.shape)
        ]
        data = np.stack(rows).astype(np.float32).tobytes()
        ctypes.memmove(self.addresses["logits"], data, len(data))


@pytest.fixture
def given():
    return with_plan(contents())


@pytest.fixture
def machine(given):
    """Returns the modules that can be imported on a fake Orin."""
    engine = Answering(FakeDriver(), *given.samples.inputs, *given.samples.outputs["fp16"])
    return machine_of(engine)


def machine_of(engine, version="10.3.0"):
    module = fake_library(engine, version).module
    severity = module.ILogger.Severity
    module.Logger = type(
        "Logger", (module.ILogger,), {"ERROR": severity.ERROR, "__init__": lambda s, level: None}
    )
    module.Logger.log = lambda self, level, text: None
    return SimpleNamespace(
        engine=engine,
        driver=engine.runtime,
        tensorrt=module,
        modules={"tensorrt": module},
    )


def on(machine, bundle, *options, capsys):
    """Runs ``verify.py`` on a fake machine; returns exit code, stdout and stderr."""
    spec = importlib.util.spec_from_file_location("verify_of_a_bundle", bundle / VERIFY)
    verify = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(verify)
    modules = {"onnxruntime": onnxruntime, **machine.modules}

    def import_module(name):
        if modules.get(name) is None:
            raise ImportError(f"No module named {name!r}")
        return modules[name]

    def load(name):
        if machine.driver is None:
            raise OSError(f"{name}: cannot open shared object file")
        assert name == "libcuda.so.1"
        return machine.driver

    verify.importlib = SimpleNamespace(import_module=import_module)
    verify.ctypes = SimpleNamespace(**vars(ctypes))
    verify.ctypes.CDLL = load
    code = verify.main(list(options))
    return code, *capsys.readouterr()


@pytest.fixture
def orin(given, tmp_path):
    path = tmp_path / "orin"
    write_bundle(path, render(given, "plain"))
    return path


@pytest.mark.parametrize("version", [v for v in VERSIONS if not v.startswith("1.")])
def test_the_engine_runs_on_every_version(given, tmp_path, version, capsys):
    engine = given.engine
    built = replace(engine, sidecar=replace(engine.sidecar, library_version=version))
    write_bundle(tmp_path / "b", render(replace(given, engine=built), "plain"))
    fake = Answering(FakeDriver(), *given.samples.inputs, *given.samples.outputs["fp16"])
    code, out, _ = on(
        machine_of(fake, version), tmp_path / "b", "--require-engine", "--time", capsys=capsys
    )
    assert code == 0
    assert "the engine differs by 0.0e+00" in out and "was not run" not in out
    assert fake.runtime.calls.count("cuMemcpyHtoD_v2") == 2 + 60
    assert fake.runtime.calls.count("cuMemcpyDtoH_v2") == 2 + 60


class SeveralContext:
    """Copies what it expects to the outputs, where the inputs are the samples."""

    def __init__(self, engine):
        self.engine, self.addresses, self.shapes = engine, {}, {}

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle):
        self.engine.runtime.work(self.answer, self.engine.run_ms)
        return True

    def answer(self):
        samples, face = self.engine.samples, self.engine.face
        for row in range(2):
            wanted = [array[row : row + 1] for array in samples.inputs]
            found = [
                ctypes.string_at(self.addresses[port.name], array.nbytes)
                for port, array in zip(face.inputs, wanted, strict=True)
            ]
            if found == [array.tobytes() for array in wanted]:
                break
        assert self.shapes == {port.name: (1, *port.shape) for port in face.inputs}
        for port, array in zip(face.outputs, samples.outputs["fp32"], strict=True):
            data = array[row : row + 1].tobytes()
            ctypes.memmove(self.addresses[port.name], data, len(data))


@pytest.mark.parametrize(("change", "code"), [(0, 0), (1, 5)])
def test_an_engine_of_several_inputs_and_outputs_runs(tmp_path, change, code, capsys):
    given = with_plan(several())
    write_bundle(tmp_path / "b", render(given, "plain"))
    engine = FakeEngine(FakeDriver())
    outputs = [*given.samples.outputs["fp32"]]
    outputs[2] = outputs[2] + change
    engine.samples = replace(given.samples, outputs={"fp32": tuple(outputs)})
    engine.face = given.interface
    engine.create_execution_context = lambda: SeveralContext(engine)
    found, out, _ = on(
        machine_of(engine), tmp_path / "b", "--require-engine", "--time", capsys=capsys
    )
    assert found == code
    assert code or "the engine differs by 0.0e+00" in out


def test_an_engine_that_computes_something_else_is_5(machine, orin, capsys):
    machine.engine.answers = 1.02 * machine.engine.answers
    code, _, err = on(machine, orin, capsys=capsys)
    assert code == 5
    assert "the engine differs by 2.0e-02 of the largest output, 1e-02 is allowed" in err


def test_a_required_engine_needs_no_onnx_runtime(machine, orin, capsys):
    machine.modules["onnxruntime"] = None
    code, out, _ = on(machine, orin, "--require-engine", capsys=capsys)
    assert code == 0
    assert "The ONNX model in ONNX Runtime was not run" in out


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("version", r"built with tensorrt 10.3.0, not 10.9.0; type trt-layermerge rebuild"),
        ("gpu", "built for compute capability 8.7, not 8.6; type trt-layermerge rebuild"),
        ("driver", "there is no NVIDIA driver (libcuda.so.1: cannot open shared object file)"),
        ("device", "cuInit failed with CUDA error 100"),
        ("memory", "cuMemAlloc_v2 failed with CUDA error 2"),
        ("context", "there is not enough memory on the GPU to run it"),
        ("plan", "it cannot be loaded here; type trt-layermerge rebuild"),
        ("run", "TensorRT could not run it"),
    ],
)
def test_an_engine_that_does_not_fit_is_left_out_with_the_reason(
    machine, orin, what, words, capsys, monkeypatch
):
    if what == "version":
        machine.tensorrt.__version__ = "10.9.0"
    elif what == "gpu":
        machine.driver.capability = {75: 8, 76: 6}
    elif what == "driver":
        machine.driver = None
    elif what == "device":
        machine.driver.fails = {"cuInit": 100}
    elif what == "memory":
        machine.driver.fails = {"cuMemAlloc_v2": 2}
    elif what == "context":
        machine.engine.create_execution_context = lambda: None
    elif what == "plan":
        machine.tensorrt.Runtime = lambda logger: SimpleNamespace(
            deserialize_cuda_engine=lambda plan: None
        )
    else:
        machine.engine.refuses = "run"
    code, out, _ = on(machine, orin, capsys=capsys)
    assert code == 0
    assert words in out
    code, _, err = on(machine, orin, "--require-engine", capsys=capsys)
    assert code == 4
    assert words in err


def test_compatible_engines_are_tried_elsewhere(given, tmp_path, capsys):
    made = with_plan(given, hardware_compatible=True, version_compatible=True)
    write_bundle(tmp_path / "b", render(made, "plain"))
    fake = Answering(FakeDriver(), *given.samples.inputs, *given.samples.outputs["fp16"])
    machine = machine_of(fake, VERSIONS[-2])
    fake.runtime.capability = {75: 8, 76: 9}
    assert on(machine, tmp_path / "b", "--require-engine", capsys=capsys)[0] == 0


def test_needs_no_more_than_python_3_8(bundle):
    run = "import vermin; vermin.main()"
    command = [sys.executable, "-c", run, "--target=3.8-", "--no-tips", "--violations"]
    done = subprocess.run([*command, bundle / VERIFY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    newer = (bundle / VERIFY).read_text() + "\nmatch HERE:\n    case _:\n        pass\n"
    (bundle / "newer.py").write_text(newer)
    done = subprocess.run([*command, bundle / "newer.py"], capture_output=True, check=False)
    assert done.returncode != 0


def test_names_nothing_of_the_package(bundle):
    text = (bundle / VERIFY).read_text()
    imports = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
    tops = {line.split()[1].partition(".")[0] for line in imports}
    assert tops - set(sys.stdlib_module_names) == {"numpy"}


@pytest.mark.slow
def test_all_pass_in_a_fresh_environment_with_numpy_and_onnxruntime(tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([python, "-m", "pip", "install", *quiet, "numpy", "onnxruntime"], check=True)
    given = with_plan(
        contents(normalise=True, softmax=True), library="tensorrt_rtx", machine=Machine()
    )
    for target in TARGETS:
        write_bundle(tmp_path / target, render(given, target))
        command = [python, tmp_path / target / VERIFY, "--time"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "differs by" in done.stdout


def test_what_comes_from_a_sigmoid_is_judged_as_everywhere() -> None:
    assert program.LEAST == {"probabilities": LEAST_PROBABILITY}  # it ships alone and imports none
    expected, found = np.float32([[1e-6, 2e-6]]), np.float32([[1e-6, 4e-6]])
    assert program.difference(found, expected, "values") == pytest.approx(1.0)
    assert program.difference(found, expected, "probabilities") == pytest.approx(2e-6 / 3e-3)
