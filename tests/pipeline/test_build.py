"""``build``: engines of both networks, for real by TensorRT-RTX, and what is recorded of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline import tiny
from trt_layermerge.cli.main import main
from trt_layermerge.core.jsonio import read_json, sha256_file
from trt_layermerge.deploy.sidecar import check_engine
from trt_layermerge.errors import (
    DeviceError,
    LayerMergeError,
    UnsupportedModelError,
    UntrustedInputError,
    UsageError,
)
from trt_layermerge.measure.agent.sources import Reading
from trt_layermerge.pipeline.api import open_run, run_stage
from trt_layermerge.pipeline.options import NullReporter, RunOptions
from trt_layermerge.session import building
from trt_layermerge.session.building import build_options

pytest.importorskip("tensorrt_rtx")


def build(runs: Path, **overrides: Any) -> list[dict[str, Any]]:
    """Returns the rows of ``build.json`` with values of the recipe's section replaced."""
    dotted = {f"build.{key}": value for key, value in overrides.items()}
    asked = {"build.engine": "tensorrt_rtx", **dotted}
    engines: list[dict[str, Any]] = run_stage("build", RunOptions("tiny", runs, overrides=asked))[
        "engines"
    ]
    return engines


def test_both_networks_at_every_precision(runs: Path) -> None:
    folder = runs / "tiny"
    rows = build(runs)
    assert [(row["precision"], row["network"]) for row in rows] == [
        ("fp32", "original"),
        ("fp32", "merged"),
        ("fp16", "original"),
        ("fp16", "merged"),
    ]
    for row in rows:
        stem = {"original": "original", "merged": "model"}[row["network"]]
        plan = folder / row["plan"]
        assert plan.name == f"{stem}.{row['precision']}.plan"
        sidecar = check_engine(plan)
        assert sidecar is not None
        assert sidecar.plan_sha256 == row["plan_sha256"] == sha256_file(plan)
        assert plan.stat().st_size == row["plan_bytes"] == sidecar.plan_bytes
        assert sidecar.build_seconds == pytest.approx(row["seconds"], abs=0.001)
        assert (sidecar.network, sidecar.precision) == (row["network"], row["precision"])
        assert sidecar.origin.onnx_sha256 == sha256_file(folder / f"{stem}.onnx")
        assert sidecar.inputs == {"input": (1, 3, 16, 16)}
        assert (sidecar.profile, row["profile"]) == ({}, {})
        assert sidecar.settings["tf32"] is False
        assert sidecar.settings["timing_cache"].startswith("not used: TensorRT-RTX")
    merged = {row["origin"] for row in _origins(rows, folder) if row["network"] == "merged"}
    assert merged == {sha256_file(folder / "merged.safetensors")}


def _origins(rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    sidecars = [json.loads((folder / row["plan"]).with_suffix(".json").read_text()) for row in rows]
    return [{"network": s["network"], "origin": s["origin"]["weights_sha256"]} for s in sidecars]


def test_a_dynamic_batch_has_a_profile_from_one_to_the_largest(runs: Path) -> None:
    asked = {"measure.batch": 2, "build.max_batch": 6, "build.engine": "tensorrt_rtx"}
    asked["build.precisions"] = ["fp16", "int8"]
    tiny.run(runs, overrides=asked)
    rows = read_json(runs / "tiny" / "build.json", "build")["engines"]
    assert [row["error"] for row in rows] == [None] * 4
    assert [row["precision"] for row in rows] == ["fp16", "fp16", "int8", "int8"]
    for row in rows:
        assert row["inputs"] == {"input": [-1, 3, 16, 16]}
        assert row["profile"] == {"input": [[1, 3, 16, 16], [2, 3, 16, 16], [6, 3, 16, 16]]}
        sidecar = check_engine(runs / "tiny" / row["plan"])
        assert sidecar is not None
        assert sidecar.profile["input"][2] == (6, 3, 16, 16)


def test_options_of_the_recipe_reach_the_builder(runs: Path) -> None:
    options = {"workspace_mib": 300, "optimization_level": 1, "tf32": True}
    [row, _] = build(runs, options=options, precisions=["fp32"])
    told = {name: row["settings"][name] for name in ("optimization_level", "tf32")}
    assert told == {"optimization_level": 1, "tf32": True}
    assert row["settings"]["workspace_bytes"] == 300 << 20


def test_every_option_of_the_recipe_is_one_of_the_builder(runs: Path) -> None:
    wanted = {
        "workspace_mib": 3,
        "optimization_level": 4,
        "tf32": True,
        "hardware_compatible": True,
        "version_compatible": True,
        "free_io_formats": True,
    }
    overrides = {"build.options": wanted}
    recipe = open_run(None, RunOptions("tiny", runs, overrides=overrides), NullReporter()).recipe
    assert set(wanted) == set(recipe.build.options.model_dump())
    options = build_options(recipe, (runs / "tiny" / "model.onnx").read_bytes())
    assert options.workspace_bytes == 3 << 20
    for name in set(wanted) - {"workspace_mib"}:
        assert getattr(options, name) == wanted[name]


@pytest.mark.parametrize("kind", [DeviceError, UnsupportedModelError])
def test_an_engine_that_cannot_be_built_does_not_keep_the_others(
    runs: Path, monkeypatch: pytest.MonkeyPatch, kind: type[LayerMergeError]
) -> None:
    real = building.build_engine

    def choosy(model: bytes, precision: Any, **options: Any) -> Any:
        if precision == "fp32":
            raise kind("the builder gave up")
        return real(model, precision, **options)

    monkeypatch.setattr(building, "build_engine", choosy)
    rows = build(runs)
    assert [row["error"] for row in rows] == ["the builder gave up"] * 2 + [None] * 2
    assert [row["plan"] is None for row in rows] == [True, True, False, False]
    assert rows[0]["exit_code"] == kind.exit_code


def failing(kind: type[LayerMergeError]) -> Callable[..., Any]:
    """Returns a builder that gives up."""

    def build_engine(*_: Any, **__: Any) -> Any:
        raise kind("the builder gave up")

    return build_engine


def test_a_full_disk_ends_the_stage_and_leaves_the_engines(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = build(runs, precisions=["fp32"])

    def full(*_: Any) -> None:
        raise DeviceError("the disk is full")

    monkeypatch.setattr(building, "write_engine", full)
    with pytest.raises(DeviceError, match="the disk is full"):
        build(runs, precisions=["fp32", "fp16"])
    for row in rows:
        assert check_engine(runs / "tiny" / row["plan"]) is not None


def test_engines_outlive_a_build_that_makes_none(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(runs, precisions=["fp32", "fp16"])
    folder = runs / "tiny" / "engines"
    before = {path.name for path in folder.rglob("*.*")}
    monkeypatch.setattr(building, "build_engine", failing(DeviceError))
    assert [row["plan"] for row in build(runs, precisions=["fp16"])] == [None, None]
    assert {path.name for path in folder.rglob("*.*")} == before
    monkeypatch.undo()
    build(runs, precisions=["fp16"])  # now the others are of no build.json
    names = {f"{stem}.fp16.{end}" for stem in ("model", "original") for end in ("plan", "json")}
    assert {path.name for path in folder.rglob("*.*")} == names


def test_what_failed_is_tried_again_when_it_is_asked_for(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The builder may have been short of memory, which no input of the stage tells."""
    monkeypatch.setattr(building, "build_engine", failing(DeviceError))
    assert [row["plan"] for row in build(runs, precisions=["fp32"])] == [None, None]
    monkeypatch.undo()
    assert None not in [row["plan"] for row in build(runs, precisions=["fp32"])]
    reporter = tiny.Recorder()
    run_stage("build", RunOptions("tiny", runs), reporter)
    assert reporter.stages("skip") == ("build",)


def test_the_power_mode_stands_in_the_sidecar(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "power_mode", lambda: Reading("25W"))
    for row in build(runs, precisions=["fp32"]):
        sidecar = check_engine(runs / "tiny" / row["plan"])
        assert sidecar is not None
        assert sidecar.machine.power_mode == "25W"


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{}")])
def test_an_engine_without_its_sidecar_is_built_again(
    runs: Path, damage: Callable[[Path], object]
) -> None:
    """As the refusal to load it tells to type."""
    [row, _] = build(runs, precisions=["fp32"])
    plan = runs / "tiny" / row["plan"]
    damage(plan.with_suffix(".json"))
    with pytest.raises(UntrustedInputError, match="build --run tiny"):
        check_engine(plan)
    build(runs, precisions=["fp32"])
    assert check_engine(plan) is not None


def test_an_option_that_the_library_lacks_ends_the_stage(runs: Path) -> None:
    with pytest.raises(UsageError, match=r"lean runtime.*build\.options\.version_compatible out"):
        build(runs, options={"version_compatible": True})


def test_no_engine_is_built_where_none_is_wanted(runs: Path) -> None:
    assert build(runs, engine="none") == []
    assert not list((runs / "tiny" / "engines").glob("**/*.plan"))


@pytest.mark.parametrize(("kind", "code"), [(DeviceError, 4), (UnsupportedModelError, 3)])
def test_the_verb_ends_with_the_code_of_what_went_wrong(
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: type[LayerMergeError],
    code: int,
) -> None:
    monkeypatch.setattr(building, "build_engine", failing(kind))
    asked = ["build", "--run", "tiny", "--runs-dir", str(runs), "--backend", "tensorrt_rtx"]
    assert main(asked) == code
    assert "the builder gave up" in capsys.readouterr().err
