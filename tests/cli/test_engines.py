"""Engines and bundles as they are shown, on a terminal of 80 columns."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from tests.cli.fakes import FakePipeline, engine
from trt_layermerge.cli.app import VERBS
from trt_layermerge.cli.engines import build_view, package_view, rebuild_view
from trt_layermerge.cli.main import main

BUNDLE: dict[str, Any] = {
    "target": "deepstream",
    "precision": "fp16",
    "engine": "tensorrt_rtx 1.7.1.116",
    "bundle": "/home/somebody/projects/runs/glyphs-resnet20-orin/deploy/deepstream",
    "note": None,
    "details": {"gpu": None},
}


def shown(view: RenderableType) -> list[str]:
    """Returns the lines without the blanks behind them."""
    console = Console(file=(file := io.StringIO()), width=80, markup=False, emoji=False)
    console.print(view)
    return [line.rstrip() for line in file.getvalue().splitlines() if line.strip()]


def test_engines_take_a_line_each() -> None:
    rows = [engine(network, p) for p in ("fp32", "int8") for network in ("original", "merged")]
    title, head, _, *lines = shown(build_view({"engines": rows}))
    assert (title, head.split()) == (
        "Engines",
        ["engine", "MB", "MB", "as", "ONNX", "seconds", "warnings"],
    )
    assert [line.split() for line in lines[:4]] == [
        [f"{stem}.{p}.plan", "87.47", "1.10", "12.3", "26"]
        for p in ("fp32", "int8")
        for stem in ("original", "model")
    ]
    folder = "engines/nvidia-geforce-rtx-4090-laptop-gpu"
    assert " ".join(lines[4:]) == f"by tensorrt 10.3.0.26, in {folder} of the run"


def test_one_reason_for_many_engines_is_said_once() -> None:
    gone = [engine(network, "fp32", "no memory") for network in ("original", "merged")]
    lines = shown(build_view({"engines": [*gone, engine("merged", "int8", "an operator")]}))
    assert lines == [
        "not built: original fp32, merged fp32: no memory",
        "not built: merged int8: an operator",
    ]


def test_nothing_was_asked_for() -> None:
    assert "--backend tensorrt" in shown(build_view({"engines": []}))[0]


def test_bundles_take_a_line_each() -> None:
    bundles = [BUNDLE, {**BUNDLE, "target": "isaac-ros", "engine": None}]
    lines = shown(package_view({"bundles": bundles}))
    assert [line.split() for line in lines[3:5]] == [
        ["deepstream", "fp16", "tensorrt_rtx", "1.7.1.116"],
        ["isaac-ros", "fp16", "none"],
    ]
    assert lines[5:] == ["→ python3", f"{BUNDLE['bundle']}/verify.py"] * 2


def test_a_rebuilt_bundle_tells_what_keeps_it_from_being_used() -> None:
    assert "note" not in "".join(shown(rebuild_view(BUNDLE)))
    lines = shown(rebuild_view({**BUNDLE, "note": "the engine is tensorrt_rtx's"}))
    assert "note       the engine is tensorrt_rtx's" in lines
    assert lines[-1] == f"{BUNDLE['bundle']}/verify.py"


@pytest.mark.parametrize("verb", [verb.__name__ for verb in VERBS])
def test_no_help_is_cut_off(
    verb: str,
    fake: FakePipeline,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") > 5 and max(map(len, out.splitlines())) <= 80
    assert "…" not in out
