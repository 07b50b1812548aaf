"""``docs/debugging.md``: what can run without a GPU is run; the rest has its options checked."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.gpus import NO_GPU
from tests.nets import example, plain_chain
from trt_layermerge.export.fp16 import to_precision
from trt_layermerge.export.onnx import export_bytes
from trt_layermerge.session.verifying import bisect_command

pytest.importorskip("polygraphy")
pytest.importorskip("tensorrt_rtx")

PAGE = (Path(__file__).parents[1] / "docs" / "debugging.md").read_text(encoding="utf-8")
GPU = "(needs a GPU)"


def blocks(needs_gpu: bool) -> Iterator[tuple[str, str]]:
    """Yields language and text of the blocks in sections that need a GPU, or in the others."""
    for section in PAGE.split("\n## "):
        if (GPU in section.partition("\n")[0]) == needs_gpu:
            yield from re.findall(r"^```(\w+)\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the run and the images that the page speaks of."""
    place = tmp_path_factory.mktemp("debugging")
    model = export_bytes(plain_chain(), example(batch=1))
    (place / "runs" / "mine" / "debug").mkdir(parents=True)
    (place / "runs" / "mine" / "model.onnx").write_bytes(model)
    typed = to_precision(model, "fp16", keep_io=True)
    (place / "runs" / "mine" / "debug" / "model.fp16.onnx").write_bytes(typed)
    np.save(place / "images.npy", example(batch=3).numpy())
    return place


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    bin_folder = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )


def test_everything_before_the_gpu_runs_as_it_stands(folder: Path) -> None:
    said = ""
    for language, text in blocks(needs_gpu=False):
        if language == "python" and "def load_data" in text:
            (folder / "loader.py").write_text(text)
        elif language == "python":
            done = subprocess.run([sys.executable, "-c", text], cwd=folder, check=False)
            assert done.returncode == 0
        else:
            for command in text.strip().splitlines():
                done = shell(command, folder)
                assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr}"
                said += done.stdout
    assert "[Op: GlobalAveragePool]" in said
    assert said.count("PASSED | Output: '") == 11  # every layer of the network, and its output
    assert (folder / "model.plan").stat().st_size > 1000
    assert (folder / "outputs.json").is_file()


def test_another_network_does_not_pass(folder: Path) -> None:
    """The control of the comparison above."""
    (folder / "other.onnx").write_bytes(export_bytes(plain_chain(seed=1), example(batch=1)))
    command = next(c for _, t in blocks(False) for c in t.splitlines() if "--load-outputs" in c)
    done = shell(command.replace("model.rounded.onnx", "other.onnx"), folder)
    assert done.returncode == 1 and "FAILED" in done.stdout


@functools.cache
def help_of(tool: str) -> str:
    return shell(f"polygraphy {tool} --help", Path.cwd()).stdout


def test_what_needs_a_gpu_has_options_that_there_are() -> None:
    commands = [c for _, text in blocks(needs_gpu=True) for c in text.strip().splitlines()]
    assert len(commands) == 4
    for command in commands:
        for part in command.split("polygraphy ")[1:]:
            tool = re.match(r"(debug reduce|inspect model|run)", part)
            assert tool is not None, part
            for option in re.findall(r"(?<= )--?[a-z][\w-]*", part):
                assert re.search(rf"(^|[\s,\[]){option}[\s,\]]", help_of(tool[1])), (tool, option)


@pytest.mark.skipif(not NO_GPU, reason="tells how it fails without a GPU")
def test_the_command_that_verify_prints_is_the_one_of_the_page(folder: Path) -> None:
    printed = bisect_command("runs/mine/debug/model.fp16.onnx", 0.05, None)
    assert printed in PAGE
    # Without a GPU every part fails alike, so the bisection ends with the first node; what counts
    # is that the command is understood, and that the only thing missing is the driver.
    done = shell(f"POLYGRAPHY_USE_TENSORRT_RTX=1 {printed}", folder)
    words = done.stdout + done.stderr
    assert done.returncode == 0 and (folder / "reduced.onnx").is_file(), words[-2000:]
    assert "unrecognized arguments" not in words and "Could not deserialize engine" in words
