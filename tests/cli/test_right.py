"""Classes, judges, calibration, weights and half precision, as typed: right, or refused.

Ground truth is worked out beside the program, from the images and torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.faults.memory import growth
from tests.pipeline import tiny
from trt_layermerge.cli.main import main
from trt_layermerge.export.fp16 import rounded, to_precision
from trt_layermerge.export.runtime import logits
from trt_layermerge.models.networks import load_network

NAMES = ("zebra", "ant", "gnu", "bee")
"""Of the four classes in the network's order, which is no alphabet's."""

MORE = '''

class One(Tiny):
    """Gives one number, or so many, through what is asked for."""

    def __init__(self, outputs=1, last=None, shift=0.0):
        super().__init__()
        self.head, self.last, self.shift = nn.Linear(12, outputs), last, shift

    def forward(self, x):
        y = super().forward(x) + self.shift
        return y if self.last is None else self.last(y)


def one(): return One()
def unlikely(): return One(1, torch.sigmoid, -14.0)
def several(): return One(4, torch.sigmoid)


class Dead(nn.Module):
    """Divides by the sum of features, which are all zero where the image is."""

    def __init__(self):
        super().__init__()
        widths = (3, 8, 8, 8, 8)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in zip(widths, widths[1:])
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        for conv in self.convs:
            x = torch.relu(conv(x))
        x = torch.relu(x.mean((2, 3)) - 0.01)  # all zero, whatever was rounded
        return self.head(x / (x.sum(1, keepdim=True) + 1e-12))


def dead():
    torch.manual_seed(0)
    return Dead()
'''


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the tiny project, trained, with more networks and its images as folders too."""
    folder = tmp_path_factory.mktemp("right")
    tiny.write_project(folder)
    (folder / "nets.py").write_text((folder / "nets.py").read_text() + MORE)
    for split in ("train", "test"):
        data = np.load(folder / f"{split}.npz")
        for number, (pixels, label) in enumerate(zip(data["images"], data["labels"], strict=True)):
            place = folder / "folders" / split / NAMES[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def typed(
    folder: Path, capsys: pytest.CaptureFixture[str], verb: str, *more: str, recipe: Path
) -> tuple[int, str]:
    """Returns exit code and what was said of a verb of the run ``tiny``, hardly trained."""
    fast = ("finetune.preset=none", "search.race_steps=0", "search.loops=1")
    given = [str(recipe)] if verb == "run" else ["--recipe", str(recipe), "--run", "tiny"]
    given = given if verb == "run" or not (folder / "tiny").exists() else ["--run", "tiny"]
    sets = [word for key in fast for word in ("--set", key)] if verb == "run" else []
    code = main([verb, *given, "--runs-dir", str(folder), *sets, *more])
    return code, " ".join(capsys.readouterr().err.split())


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / "tiny" / f"{name}.json").read_text())


def answers(project: Path, images: NDArray[np.uint8], name: str = "tiny") -> Tensor:
    network = load_network(f"{project}/nets.py:{name}", str(project / "tiny.safetensors"))
    with torch.no_grad():
        found: Tensor = network(torch.from_numpy(tiny.PREPROCESS(images)))
    return found


def settings(values: Mapping[str, Any]) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


# Classes: a network whose order is in no alphabet, and a test folder that lacks a class.


@pytest.mark.parametrize("lacking", [None, "ant"])
def test_classes_are_those_of_the_network_whatever_order_folders_have(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lacking: str | None
) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(NAMES) + "\n")
    test = tmp_path / "test"
    test.mkdir()
    for name in NAMES:
        if name != lacking:
            (test / name).symlink_to(project / "folders" / "test" / name)
    given = settings(
        {
            "data.train": f"imagefolder:{project}/folders/train",
            "data.val": "null",
            "data.test": f"imagefolder:{test}",
            "data.classes": tmp_path / "classes.txt",
            "package.targets": "[plain]",
        }
    )
    code, said = typed(tmp_path, capsys, "run", *given, recipe=project / "tiny.yaml")
    assert code == 0, said
    data = np.load(project / "test.npz")
    kept = data["labels"] != (-1 if lacking is None else NAMES.index(lacking))
    hits = answers(project, data["images"][kept]).argmax(1).numpy() == data["labels"][kept]
    body = read(tmp_path, "verify")
    assert body["images"] == kept.sum()
    assert body["accuracy"]["original"] == hits.mean() > 0.5
    labels = (tmp_path / "tiny" / "deploy" / "plain" / "labels.txt").read_text().split()
    assert labels == list(NAMES)
    # A list in another order is other data: what rests on it is done again.
    (tmp_path / "classes.txt").write_text("\n".join(sorted(NAMES)))
    assert typed(tmp_path, capsys, "run", *given, recipe=project / "tiny.yaml")[0] == 0
    assert read(tmp_path, "verify")["accuracy"]["original"] < 0.5


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("ant\\nbee\\ngnu\\nyak", "the classes zebra are none of the 4"),
        ("ant\\nbee\\nant\\nzebra", "has the name ant twice"),
        ("", "has no name"),
    ],
)
def test_lists_of_classes_that_do_not_fit_are_refused_at_once(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: str, words: str
) -> None:
    (tmp_path / "classes.txt").write_text(names.replace("\\n", "\n"))
    images = f"imagefolder:{project}/folders/train"
    given = settings({"data.train": images, "data.classes": tmp_path / "classes.txt"})
    code, said = typed(tmp_path, capsys, "run", *given, recipe=project / "tiny.yaml")
    assert code == 2 and words in said
    assert not (tmp_path / "tiny" / "latency.jsonl").exists()


# Judges: what is no choice between classes.


def of(project: Path, folder: Path, name: str, outputs: int) -> Path:
    """Writes a recipe for another network with the trained weights; returns its path."""
    state = load_file(project / "tiny.safetensors")
    state = {k: v[:outputs] if k.startswith("head.") else v for k, v in state.items()}
    save_file(state, folder / "other.safetensors")
    text = (project / "tiny.yaml").read_text().replace("nets.py:tiny", f"{project}/nets.py:{name}")
    text = text.replace("tiny.safetensors", str(folder / "other.safetensors"))
    (folder / "tiny.yaml").write_text(text.replace("npz:", f"npz:{project}/"))
    return folder / "tiny.yaml"


def test_a_single_number_that_int8_spoils_is_not_the_same_answer(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = of(project, tmp_path, "one", 1)
    assert typed(tmp_path, capsys, "run", recipe=recipe)[0] == 0
    spoilt = "{images: 32, method: percentile, percentile: 50, max_float_layers: 0}"
    given = settings({"calibrate.options": spoilt})
    code, said = typed(tmp_path, capsys, "calibrate", *given, recipe=recipe)
    assert code == 5 and "int8 changes the class of (or the number for)" in said, said


def test_probabilities_are_judged_about_one_half(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All are positive: by their sign, as of logits, any two networks would agree."""
    recipe = of(project, tmp_path, "several", 4)
    given = settings({"task": "multilabel", "search.speedup": 1.5})
    code, said = typed(tmp_path, capsys, "run", *given, recipe=recipe)
    assert code == 0 and "logits (1, 4) as probabilities" in said, said
    images = tiny.PREPROCESS(np.load(project / "test.npz")["images"])
    before, after = (
        logits((tmp_path / "tiny" / f"{n}.onnx").read_bytes(), images)
        for n in ("original", "model")
    )
    same = ((before > 0.5) == (after > 0.5)) & (np.abs(before - after) <= 0.1)
    (found,) = read(tmp_path, "verify")["fidelity"].values()
    assert found["kind"] == "probabilities" and found["kl"] > 0
    assert found["agreement"] == pytest.approx(same.mean(), abs=0.01) and same.mean() < 1


def test_probabilities_of_almost_nothing_are_verified_and_bundled(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime computes sigmoids to 1e-7: a tenth of these, and nothing of a probability."""
    recipe = of(project, tmp_path, "unlikely", 1)
    given = settings({"package.targets": "[plain]", "measure.precision": "fp16"})
    code, said = typed(tmp_path, capsys, "run", *given, recipe=recipe)
    assert code == 0, said
    body = read(tmp_path, "verify")
    assert body["failed_gate"] is None
    assert all(c["max_rel"] < 1e-3 and c["agreement"] == 1 for c in body["comparisons"])
    bundle = tmp_path / "tiny" / "deploy" / "plain"
    with np.load(bundle / "expected.npz") as samples:
        assert 0 < samples["output_fp16_0"].max() < 1e-4
    done = subprocess.run([sys.executable, bundle / "verify.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Calibration: its cost does not depend on what the images show.


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_images_that_are_dark_but_for_one_cost_calibration_neither_memory_nor_time(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    """Bins as narrow as the first image's would be millions; the order changes nothing."""
    images, ranges = np.load(project / "train.npz")["images"], []
    for bright in (0, 159):
        pixels = np.full_like(images, 127)  # a hundredth of the spread
        pixels[bright] = images[0]
        np.savez(tmp_path / "train.npz", images=pixels)
        given = {
            "data.train": f"npz:{tmp_path}/train.npz",
            "calibrate.options": f"{{images: 160, method: {method}, max_accuracy_drop: 1}}",
            "build.precisions": "[int8]",
        }
        grown = growth()
        code, said = typed(tmp_path, capsys, "run", *settings(given), recipe=project / "tiny.yaml")
        assert code == 0, said
        assert grown() < 200 << 20
        ranges.append(read(tmp_path, "calibration")["networks"]["original"]["tensors"])
    assert ranges[0] == ranges[1]


# Weights: floats under any wrapper's names, and nothing else.


@pytest.mark.parametrize("kind", ["int8", "complex64", "float8_e4m3fn"])
def test_weights_that_are_no_floats_are_named_as_typed(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    state = load_file(project / "tiny.safetensors")
    state["head.weight"] = state["head.weight"].to(getattr(torch, kind))
    torch.save(state, tmp_path / "w.pt")
    given = ("--weights", str(tmp_path / "w.pt"))
    code, said = typed(tmp_path, capsys, "run", *given, recipe=project / "tiny.yaml")
    assert code == 7 and f"head.weight is {kind} and cannot become float32" in said


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_wrapped_weights_of_any_width_give_the_network_they_are(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """Beside an average of other weights, which is told and not taken."""
    state = load_file(project / "tiny.safetensors")
    typed_as = {
        k: v.to(getattr(torch, kind)) if v.is_floating_point() else v for k, v in state.items()
    }
    wrapped = {f"module._orig_mod.{name}": value for name, value in typed_as.items()}
    average = {name: torch.zeros_like(value) for name, value in wrapped.items()}
    torch.save({"ema": average, "state_dict": wrapped}, tmp_path / "w.pt")
    given = ("--weights", str(tmp_path / "w.pt"))
    code, said = typed(tmp_path, capsys, "run", *given, recipe=project / "tiny.yaml")
    assert code == 0, said
    assert "state_dict was taken, not ema; to take another, save it alone" in said
    plain = {k: v.float() if v.is_floating_point() else v for k, v in typed_as.items()}
    save_file(plain, tmp_path / "plain.safetensors")
    data = np.load(project / "test.npz")
    network = load_network(f"{project}/nets.py:tiny", str(tmp_path / "plain.safetensors"))
    with torch.no_grad():
        found = network(torch.from_numpy(tiny.PREPROCESS(data["images"]))).argmax(1).numpy()
    assert read(tmp_path, "verify")["accuracy"]["original"] == np.mean(found == data["labels"])


# Half precision: from export to bundle.


def scaled(state: dict[str, Tensor], first: float, then: float) -> dict[str, Tensor]:
    """Returns weights of the same function, whose values are larger by a factor in each half."""
    scale = {"stem": 1.0, "blocks.0": first, "blocks.1": then, "blocks.2": then, "head": 1.0}
    levels = {f"{b}.{n}.1": scale[b] for b in scale for n in ("first", "second", "shortcut")}
    reads = {f"{b}.second.0": scale[b] for b in scale}
    levels["stem.1"] = reads["blocks.0.first.0"] = reads["blocks.1.first.0"] = first
    reads |= {"blocks.1.shortcut.0": first, "blocks.2.first.0": then, "head": then}
    levels = {name: factor for name, factor in levels.items() if f"{name}.weight" in state}
    reads = {name: factor for name, factor in reads.items() if f"{name}.weight" in state}
    for name, factor in levels.items():
        for part in ("weight", "bias"):
            state[f"{name}.{part}"] = state[f"{name}.{part}"] * factor
    for name, factor in reads.items():
        state[f"{name}.weight"] = state[f"{name}.weight"] / factor
    return state


@pytest.mark.parametrize(("first", "then"), [(3e4, 1.0), (1e-6, 1e-3)])
def test_values_beyond_half_precision_end_right_from_export_to_bundle(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], first: float, then: float
) -> None:
    state = load_file(project / "tiny.safetensors")
    save_file(scaled(dict(state), first, then), tmp_path / "w.safetensors")
    given = ("--weights", str(tmp_path / "w.safetensors"), "--precision", "fp16")
    more = settings({"package.targets": "[plain]"})
    code, said = typed(tmp_path, capsys, "run", *given, *more, recipe=project / "tiny.yaml")
    assert code == 0, said
    kept = {
        network: row["kept_in_float"] for network, row in read(tmp_path, "export")["models"].items()
    }
    assert all(kept.values()), kept
    images = tiny.PREPROCESS(np.load(project / "test.npz")["images"])
    folder = tmp_path / "tiny"
    for stem in ("original", "model"):
        master = (folder / f"{stem}.onnx").read_bytes()
        exact = logits(master, images)
        half = logits(rounded(to_precision(master, "fp16", keep_io=True)), images)
        assert np.abs(half - exact).max() < 0.02 * np.abs(exact).max()
        assert not np.allclose(all_in_half(master, images), exact, atol=0.02 * np.abs(exact).max())
    np.testing.assert_allclose(
        logits((folder / "original.onnx").read_bytes(), images),
        answers(project, np.load(project / "test.npz")["images"]),
        atol=1e-3,
    )
    assert bundled(folder) < 0.02


def all_in_half(master: bytes, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns what a model gives with nothing kept in float; not a number where it is refused."""
    model = onnx.load_from_string(master)
    del model.metadata_props[:]
    try:
        return logits(
            rounded(to_precision(model.SerializeToString(), "fp16", keep_io=True)), images
        )
    except Exception:
        return np.full((len(images), 4), np.nan, np.float32)


def bundled(folder: Path) -> float:
    """Returns how far a bundle at fp16 is from single precision, having run its ``verify.py``."""
    bundle = folder / "deploy" / "plain"
    done = subprocess.run([sys.executable, bundle / "verify.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(bundle / "expected.npz") as samples:
        exact = logits((folder / "model.onnx").read_bytes(), samples["input_0"])
        half = samples["output_fp16_0"]
    assert np.isfinite(half).all()
    return float(np.abs(half - exact).max() / np.abs(exact).max())


def test_an_eps_below_half_precision_ends_right_from_export_to_bundle(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The images are black, so that all features are 0: 0 / (0 + 1e-12), and not 0 / 0."""
    black = np.zeros((64, 16, 16, 3), np.uint8)
    black[1:] = np.load(project / "test.npz")["images"][:63]
    black[32:] = 0
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", images=black)
    torch.manual_seed(0)
    more = {
        "model.name": f"{project}/nets.py:dead",
        "model.weights": "null",
        "data.preprocess.mean": "[0, 0, 0]",
        "data.preprocess.std": "[1, 1, 1]",
        "data.train": f"npz:{tmp_path}/train.npz",
        "data.val": "null",
        "data.test": f"npz:{tmp_path}/test.npz",
        "measure.precision": "fp16",
        "package.targets": "[plain]",
        "search.speedup": 1.1,
    }
    code, said = typed(tmp_path, capsys, "run", *settings(more), recipe=project / "tiny.yaml")
    assert code == 0, said
    comparisons = {c["name"]: c for c in read(tmp_path, "verify")["comparisons"]}
    for name in ("original.fp16.onnx", "model.fp16.onnx"):
        assert comparisons[name]["finite"] and comparisons[name]["max_rel"] < 0.02
    assert bundled(tmp_path / "tiny") < 0.02
