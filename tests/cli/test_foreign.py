"""Networks, sets, files and names of users that fail in every way: a paragraph, never a traceback.

``This is a bug`` stands for what is one: each command here is typed at the real command line, and
ends with its own exit code.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file

from tests.cli.fakes import FakePipeline
from tests.pipeline import tiny
from trt_layermerge.cli.main import main
from trt_layermerge.errors import CorruptInputError, UsageError, foreign, words_of
from trt_layermerge.pipeline.options import RunOptions
from trt_layermerge.pipeline.run import Run
from trt_layermerge.pipeline.sections import PreprocessSection
from trt_layermerge.pipeline.stages import report

USAGE, UNSUPPORTED, DEVICE, LATENCY, CORRUPT = 2, 3, 4, 6, 7

NETS = '''"""Networks and sets whose own code fails."""
import runpy
import sys
from pathlib import Path
import torch
Tiny = runpy.run_path(str(Path(__file__).parent / "nets.py"))["Tiny"]
class Odd(BaseException):
    pass
class Speechless(Exception):
    def __str__(self):
        raise ValueError
def leaves(): sys.exit(0)
def leaves_with_words(): sys.exit("no licence")
def recursive(): return recursive()
def odd(): raise Odd("odd")
def speechless(): raise Speechless
def circular():
    net = Tiny()
    net.blocks[0].add_module("whole", net)
    return net
class Leaving(Tiny):
    def forward(self, x): sys.exit(0)
class Uncopied(Tiny):
    def __deepcopy__(self, memo): sys.exit(0)
class Set(torch.utils.data.Dataset):
    def __init__(self, item): self.item = item
    def __len__(self): return 64
    def __getitem__(self, i): return self.item(i)
image = torch.zeros(3, 16, 16)
def leaving_set(): return Set(lambda i: sys.exit(0))
def short_set(): return Set(lambda i: [(image, 0)] [i])
def unkeyed_set(): return Set(lambda i: {}["image"])
def negative_set(): return Set(lambda i: (image, -1))
'''


def typed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Returns exit code and paragraph of a command that fails, and takes no fault for a bug."""
    code = main([*arguments, "-q"])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert "Traceback" not in err and "This is a bug" not in err, err
    return code, err


@pytest.fixture(scope="module")
def odd(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with a Python file whose networks and sets fail."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "nets.py").write_text((finished / "nets.py").read_text())
    (folder / "odd.py").write_text(NETS)
    (folder / "leaves.py").write_text("raise SystemExit(0)\n")
    return folder


FACTORIES = [
    ("odd.py:leaves", USAGE, "cannot make .*:leaves: it ends the program (SystemExit: 0)"),
    ("odd.py:leaves_with_words", USAGE, "it ends the program (SystemExit: no licence)"),
    ("odd.py:recursive", USAGE, "RecursionError"),
    ("odd.py:odd", USAGE, "Odd: odd"),
    ("odd.py:speechless", USAGE, "Speechless"),
    ("odd.py:circular", USAGE, "RecursionError"),
    ("leaves.py:net", USAGE, "leaves.py cannot be run: it ends the program"),
    ("odd.py:Leaving", USAGE, "failed: it ends the program (SystemExit: 0); this is no code of"),
    ("odd.py:Uncopied", USAGE, "failed: it ends the program (SystemExit: 0); this is no code of"),
]


@pytest.mark.parametrize(("name", "code", "words"), FACTORIES, ids=[case[0] for case in FACTORIES])
def test_a_network_whose_own_code_fails_in_any_way(
    odd: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    code: int,
    words: str,
) -> None:
    model = ("--model", f"{odd / name}", "--input", "1x3x16x16")
    found, said = typed(capsys, "inspect", "--run", "x", "--runs-dir", str(tmp_path), *model)
    assert found == code
    assert all(part in said for part in words.split(".*"))


def test_a_relative_name_of_a_module_is_no_module(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = typed(
        capsys, "inspect", "--run", "x", "--runs-dir", str(tmp_path), "--model", "..x:net"
    )
    assert code == USAGE and "cannot import ..x" in said


SETS = [
    ("leaving_set", "it ends the program"),
    ("short_set", "IndexError"),
    ("unkeyed_set", "KeyError: 'image'"),
]


@pytest.mark.parametrize(("name", "words"), SETS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_set_whose_own_code_fails_in_any_way(
    runs: Path, odd: Path, capsys: pytest.CaptureFixture[str], name: str, words: str, split: str
) -> None:
    given = (f"--{split}", f"{odd}/odd.py:{name}")
    code, said = typed(capsys, "run", "--run", "tiny", "--runs-dir", str(runs), *given)
    assert code == CORRUPT
    assert f"{name} must give pairs of an image tensor and a label" in said and words in said


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("wrong", [-1, 4, 7])
def test_labels_that_are_no_classes_are_refused_before_anything_is_measured(
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    split: str,
    wrong: int,
) -> None:
    images, labels = tiny.stripes(40, 9)
    labels[3] = wrong
    np.savez(tmp_path / "wrong.npz", images=images, labels=labels)
    given = (f"--{split}", f"npz:{tmp_path}/wrong.npz")
    recipe = str(finished / "tiny.yaml")
    code, said = typed(capsys, "run", recipe, "--runs-dir", str(tmp_path), *given)
    assert code == CORRUPT and ("labels run from -1" in said or f"the label {wrong}" in said)
    assert not (tmp_path / "tiny" / "latency.jsonl").exists()


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_negative_label_of_a_set_is_no_wrong_answer(
    runs: Path, odd: Path, capsys: pytest.CaptureFixture[str], split: str
) -> None:
    given = (f"--{split}", f"{odd}/odd.py:negative_set")
    code, said = typed(capsys, "run", "--run", "tiny", "--runs-dir", str(runs), *given)
    assert code == CORRUPT and "the label -1, but the network tells 4 classes apart" in said


NUMBERS = [
    ("search.speedup", ".inf"),
    ("search.speedup", ".nan"),
    ("search.budget_ms", ".inf"),
    ("search.objective.capacity", ".inf"),
    ("data.preprocess.scale", ".nan"),
    ("data.preprocess.scale", "1.0e+300"),
    ("data.preprocess.scale", "0"),
    ("data.preprocess.mean", "[.inf, 0, 0]"),
    ("data.preprocess.mean", "[1.0e+39, 0, 0]"),
    ("data.preprocess.std", "[.inf, 1, 1]"),
    ("data.preprocess.std", "[1.0e-300, 1, 1]"),
    ("finetune.reconstruct.lr", ".inf"),
    ("model.input", "[1, 3, 1000000, 1000000]"),
    ("model.input", "[1, 3, 99999999999999999999, 1]"),
]


@pytest.mark.parametrize(("key", "value"), NUMBERS)
def test_no_number_that_nothing_can_be_computed_with_is_begun_with(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: str
) -> None:
    given = ("--runs-dir", str(tmp_path), "--set", f"{key}={value}")
    code, said = typed(capsys, "run", str(finished / "tiny.yaml"), *given)
    assert code == USAGE
    assert f"cannot be used: {key.rpartition('.')[0]}" in said
    assert not (tmp_path / "tiny").exists()


def test_preprocessing_that_tells_pixels_apart_stays() -> None:
    """The narrowest and the widest that single precision has room for."""
    PreprocessSection(scale=1e-30, mean=(0, 0, 0), std=(1e-30,) * 3)
    PreprocessSection(scale=-1.0, mean=(1e3, 0, -1e3), std=(1e-3, 1, 1e3))


@pytest.mark.parametrize("budget", ["--speedup=1e300", "--speedup=50", "--budget-ms=0.0001"])
def test_a_budget_out_of_all_reach_is_refused_before_anything_is_scored(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], budget: str
) -> None:
    recipe = str(finished / "tiny.yaml")
    code, said = typed(capsys, "run", recipe, "--runs-dir", str(tmp_path), budget)
    assert code == LATENCY
    assert "no network meets" in said and "the fastest is predicted to take" in said
    assert (tmp_path / "tiny" / "latency.jsonl").exists()
    assert not (tmp_path / "tiny" / "importance.jsonl").exists()


NAMES = ["n" * 300, "né" * 100, "a\nb", "a\x1b[31m", "a\udcff", "..", ""]


@pytest.mark.parametrize("name", NAMES)
def test_what_no_folder_should_be_called_is_no_name_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    arguments = ("--runs-dir", str(tmp_path), "--model", "timm:resnet18")
    code, said = typed(capsys, "inspect", "--run", name, *arguments)
    assert code == USAGE and "cannot be the name of a run" in said
    assert len(said) < 300 + len(str(tmp_path))


def test_names_that_are_text_stay_names() -> None:
    for name in ("résumé 2", "名前", "a.b-c_d", "n" * 200, "..."):
        assert RunOptions(name).run == name


def test_a_folder_with_a_name_too_long_is_named_and_is_no_bug(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / ("n" * 300)
    given = ("--run", "x", "--runs-dir", str(runs), "--model", "timm:resnet18")
    code, said = typed(capsys, "inspect", *given)
    assert code == DEVICE and f"{runs}" in said and "File name too long" in said


@pytest.mark.parametrize("text", ["a\\0b.py:net", "\\ud800.py:net"])
def test_a_recipe_with_what_is_no_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "odd.yaml").write_text(f'{{model: {{name: "{text}"}}}}')
    code, said = typed(capsys, "run", str(tmp_path / "odd.yaml"), "--runs-dir", str(tmp_path))
    assert code == USAGE and "is no text" in said


GONE = [("doctor",), ("inspect", "--run", "x", "--model", "timm:resnet18"), ("rebuild", ".")]


@pytest.mark.parametrize("verb", GONE, ids=[verb[0] for verb in GONE])
def test_a_current_folder_that_was_deleted_is_named(tmp_path: Path, verb: tuple[str, ...]) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"import os, shutil, sys; os.chdir({str(gone)!r}); shutil.rmtree({str(gone)!r})\n"
    script += f"from trt_layermerge.cli.main import main; sys.exit(main({list(verb)!r}))"
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (USAGE, DEVICE)
    assert "This is a bug" not in done.stderr and "Traceback" not in done.stderr
    assert verb[0] == "rebuild" or "is gone; change to one that exists (cd)" in done.stderr


def test_a_run_that_is_deleted_meanwhile_is_no_bug(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def deleted(run: Run) -> tuple[str, ...]:
        shutil.rmtree(runs)
        return report._run(run)

    monkeypatch.setattr(report, "STAGE", replace(report.STAGE, run=deleted))
    given = ("--run", "tiny", "--runs-dir", str(runs), "--from", "report")
    code, said = typed(capsys, "run", *given)
    assert code in (USAGE, DEVICE) and str(runs) in said


def checkpoints(folder: Path, state: dict[str, torch.Tensor]) -> dict[str, Path]:
    """Returns checkpoints that are odd: by what is odd about them."""
    nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    content: dict[str, object] = {
        "meta": {name: value.to("meta") for name, value in state.items()},
        "nested": dict.fromkeys(state, nested),
        "list": [1, 2],
        "number": 3,
        "nothing": {},
    }
    paths = {}
    for name, value in content.items():
        paths[name] = folder / f"{name}.pt"
        torch.save(value, paths[name])
    for name, data in {"byte": b"\x80", "zip": b"PK\x03\x04", "empty": b""}.items():
        paths[name] = folder / f"{name}.pt"
        paths[name].write_bytes(data)
    return paths


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_odd_checkpoints_are_refused_by_name(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_file(finished / "tiny.safetensors")
    for name, path in checkpoints(tmp_path, state).items():
        model = ("--model", f"{finished}/nets.py:tiny", "--input", "1x3x16x16")
        given = ("--run", "x", "--runs-dir", str(tmp_path / "runs"), "--weights", str(path))
        code, said = typed(capsys, "inspect", *given, *model)
        assert code == CORRUPT and str(path) in said, name


def test_an_npz_that_is_one_array_or_a_pickle(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = tiny.stripes(8, 1)
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, images)
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps({"images": images, "labels": labels}))
    for name, words in (("array", "it is one array"), ("pickle", "pickled objects")):
        given = ("--runs-dir", str(tmp_path), "--train", f"npz:{tmp_path}/{name}.npz")
        code, said = typed(capsys, "run", str(finished / "tiny.yaml"), *given)
        assert code == CORRUPT and words in said


def onnx_model(opset: int = 17, outputs: bool = True, **attributes: list[int]) -> onnx.ModelProto:
    """Returns a convolution and a pooling, ``(1, 3, 16, 16)`` to ``(1, 8)``."""
    weight = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], **{"pads": [1] * 4, **attributes}),
        helper.make_node("GlobalAveragePool", ["y"], ["z"]),
        helper.make_node("Flatten", ["z"], ["o"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 3, 16, 16]), ("o", [1, 8]))
    ]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:] if outputs else [], [numpy_helper.from_array(weight, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    return model


ODD_ONNX = {
    "no output": onnx_model(outputs=False),
    "stride 0": onnx_model(strides=[0, 0]),
    "stride -1": onnx_model(strides=[-1, -1]),
    "one stride": onnx_model(strides=[1]),
    "dilation 0": onnx_model(dilations=[0, 0]),
    "two pads": onnx_model(pads=[1, 1]),
    "opset 9999": onnx_model(opset=9999),
    "opset -5": onnx_model(opset=-5),
}


@pytest.mark.parametrize("name", ODD_ONNX)
def test_odd_onnx_files_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = tmp_path / "odd.onnx"
    path.write_bytes(ODD_ONNX[name].SerializeToString())
    given = ("--run", "x", "--runs-dir", str(tmp_path / "runs"), "--input", "1x3x16x16")
    code, said = typed(capsys, "inspect", "--model", str(path), *given)
    assert code in (UNSUPPORTED, CORRUPT) and (str(path) in said or "ONNX node" in said)


@pytest.fixture
def soon() -> Iterator[None]:
    """Fails where something takes longer than ten seconds."""

    def late(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


PIPES = [
    "run {pipe}.yaml",
    "inspect --run x --recipe {pipe}.yaml",
    "inspect --run x --weights {pipe}.pt --model {project}/nets.py:tiny --input 1x3x16x16",
    "inspect --run x --model {pipe}.py:net",
    "inspect --run x --model {pipe}.onnx",
    "run {project}/tiny.yaml --train npz:{pipe}.npz",
    "run {project}/tiny.yaml --test imagefolder:{project}?list={pipe}.txt",
    "run {project}/tiny.yaml --set calibrate.preset={pipe}.yaml",
    "run /dev/zero --run x",
]


@pytest.mark.parametrize("command", PIPES)
def test_a_pipe_or_a_device_is_no_file_and_nothing_waits_for_it(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], soon: None, command: str
) -> None:
    for suffix in ("yaml", "pt", "py", "onnx", "npz", "txt"):
        os.mkfifo(tmp_path / f"pipe.{suffix}")
    words = command.format(pipe=tmp_path / "pipe", project=finished).split()
    code, said = typed(capsys, *words, "--runs-dir", str(tmp_path))
    assert code in (USAGE, CORRUPT)
    assert "it is a pipe or a device" in said or "there is no " in said or "are no file" in said


@pytest.mark.parametrize("verb", ["inspect", "run"])
def test_a_network_where_nothing_merges_is_shown_and_ends_with_its_code(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    (tmp_path / "alone.py").write_text(
        "from torch import nn\n"
        "def net(): return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(2), "
        "nn.Conv2d(4, 4, 3, 2), nn.Flatten(), nn.Linear(4, 4))\n"
    )
    given = ["--runs-dir", str(tmp_path), "--model", f"{tmp_path}/alone.py:net", "-q"]
    recipe = [str(finished / "tiny.yaml")]
    recipe = recipe if verb == "run" else ["--run", "x", "--recipe", *recipe]
    code = main([verb, *recipe, *given, "--set", "model.weights=null"])
    out, err = capsys.readouterr()
    assert code == UNSUPPORTED and err.count("\n") == 1, err
    assert "nothing in this network can merge: it has 2 convolutions" in err and "pooling" in err
    assert ("pooling" in out) == (verb == "inspect")
    assert not list(tmp_path.rglob("latency.jsonl"))


def test_a_record_of_stages_that_is_a_pipe_is_none(
    runs: Path, capsys: pytest.CaptureFixture[str], soon: None
) -> None:
    (runs / "tiny" / "state.json").unlink()
    os.mkfifo(runs / "tiny" / "state.json")
    code, said = typed(capsys, "report", "--run", "tiny", "--runs-dir", str(runs))
    assert code == USAGE and "state.json: it is a pipe" in said


KILLED = """
import os, signal, sys
from trt_layermerge.cli.main import main
right, left = os.fsync, [int(sys.argv[1])]
def fsync(handle):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    right(handle)
os.fsync = fsync
main(sys.argv[2:])
"""


@pytest.mark.parametrize("writes", [4, 60])
def test_what_a_killed_run_leaves_of_files_is_cleared_by_the_next(
    finished: Path, tmp_path: Path, writes: int
) -> None:
    typed = ["run", str(finished / "tiny.yaml"), "--runs-dir", str(tmp_path), "-q"]
    arguments = [sys.executable, "-c", KILLED, str(writes), *typed]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(arguments, env={**os.environ, "PYTHONPATH": root})
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.rglob(".*"))  # a lock at least
    tiny.run(tmp_path, finished / "tiny.yaml")
    assert not list(tmp_path.rglob(".*"))
    plans = [folder / "tiny" / "plan.json" for folder in (tmp_path, finished / "runs")]
    assert plans[0].read_bytes() == plans[1].read_bytes()


def test_lack_of_memory_is_told_whoever_says_it(
    fake: FakePipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(reporter: object) -> None:
        torch.zeros(2**50)

    fake.work = work
    code, said = typed(capsys, "merge", "--run", "x")
    assert code == DEVICE and "out of memory" in said


def test_what_is_foreign_is_told_in_one_place() -> None:
    damaged = foreign(lambda why: CorruptInputError(f"file: {why}"))
    with pytest.raises(CorruptInputError, match=r"^file: KeyError: 'a'$"), damaged:
        {}["a"]
    with pytest.raises(UsageError, match="mine"), foreign(CorruptInputError):
        raise UsageError("mine")
    with pytest.raises(KeyboardInterrupt), foreign(CorruptInputError):
        raise KeyboardInterrupt
    assert words_of(ValueError("two\n  lines")) == "two lines"
    assert words_of(ValueError()) == "ValueError"
    assert words_of(ZeroDivisionError("by zero")) == "ZeroDivisionError: by zero"
