"""What is typed arrives as recipe keys that the recipe knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.fakes import FakePipeline, engine
from trt_layermerge.cli.app import VERBS
from trt_layermerge.cli.main import main
from trt_layermerge.cli.options import SharedOptions
from trt_layermerge.cli.verb import overrides
from trt_layermerge.errors import UsageError
from trt_layermerge.pipeline.options import STAGES, RunOptions
from trt_layermerge.pipeline.recipe import load_recipe

SHARED = (
    "--model torchvision:resnet18 --weights w.safetensors --input 1x3x64x96 --outputs a,b/c "
    "--train npz:a.npz --val npz:b.npz --test imagefolder:c --seed 7 --device cuda:1"
)
SHARED_KEYS: dict[str, Any] = {
    "model.name": "torchvision:resnet18",
    "model.weights": "w.safetensors",
    "model.input": [1, 3, 64, 96],
    "model.outputs": ["a", "b/c"],
    "data.train": "npz:a.npz",
    "data.val": "npz:b.npz",
    "data.test": "imagefolder:c",
    "seed": 7,
    "device": "cuda:1",
}
MEASURE = "--backend onnxruntime --precision fp16 --batch 8"
MEASURE_KEYS: dict[str, Any] = {
    "measure.backend": "onnxruntime",
    "measure.precision": "fp16",
    "measure.batch": 8,
}
GOAL = "--budget-ms 1.5 --speedup 2 --mode depth --rules paper"
GOAL_KEYS: dict[str, Any] = {
    "search.budget_ms": 1.5,
    "search.speedup": 2.0,
    "search.mode": "depth",
    "search.rules": "paper",
}
OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "inspect": (f"{MEASURE} --rules paper", {**MEASURE_KEYS, "search.rules": "paper"}),
    "importance": (
        f"{MEASURE} --method finetune",
        {**MEASURE_KEYS, "importance.method": "finetune"},
    ),
    "search": (f"{MEASURE} {GOAL}", {**MEASURE_KEYS, **GOAL_KEYS}),
    "finetune": (
        f"{MEASURE} --preset none --start original",
        {**MEASURE_KEYS, "finetune.preset": "none", "finetune.start": "original"},
    ),
    "calibrate": (
        f"{MEASURE} --preset p.yaml --method entropy --images 64 --qat-epochs 2",
        {
            **MEASURE_KEYS,
            "calibrate.preset": "p.yaml",
            "calibrate.options.method": "entropy",
            "calibrate.options.images": 64,
            "calibrate.qat_epochs": 2,
            "build.precisions+": "int8",
        },
    ),
    "build": (
        "--backend tensorrt_rtx --precision fp16 --batch 8",
        {"build.engine": "tensorrt_rtx", "build.precisions": ["fp16"], "measure.batch": 8},
    ),
    "verify": (
        f"{MEASURE} --max-accuracy-drop 0.01",
        {**MEASURE_KEYS, "verify.max_accuracy_drop": 0.01},
    ),
}


@pytest.mark.parametrize("stage", STAGES)
def test_every_option_of_a_stage_is_a_key_of_the_recipe(fake: FakePipeline, stage: str) -> None:
    own, own_keys = OWN.get(stage, (MEASURE, MEASURE_KEYS))
    fake.result = {"engines": []}
    # Views have tests of their own; here only what is asked matters.
    arguments = f"{stage} --run x --runs-dir some/where {SHARED} {own} --json".split()
    assert main(arguments) == 0
    expected = {**SHARED_KEYS, **own_keys}
    assert fake.asked == [(stage, RunOptions("x", Path("some/where"), overrides=expected))]
    recipe = load_recipe(None, expected).model_dump()
    assert recipe["seed"] == 7
    assert recipe["model"]["input"] == (1, 3, 64, 96)
    assert recipe["model"]["outputs"] == ("a", "b/c")


def test_what_is_not_typed_is_left_to_the_recipe(fake: FakePipeline) -> None:
    assert main(["latency", "--run", "x", "--recipe", "r.yaml", "--json", "-vv"]) == 0
    assert fake.asked == [("latency", RunOptions("x", recipe=Path("r.yaml"), verbose=2))]


def test_only_who_asks_for_it_trusts_an_engine(fake: FakePipeline) -> None:
    assert main(["verify", "--run", "x", "--json", "--trust-engine"]) == 0
    assert main(["verify", "--run", "x", "--json"]) == 0
    assert [options.trust_engine for _, options in fake.asked] == [True, False]
    assert not any(options.overrides for _, options in fake.asked)  # or the run would remember it


def test_run_takes_a_recipe_and_names_the_run_after_it(fake: FakePipeline) -> None:
    assert main(f"run a/b.yaml {SHARED} {MEASURE} {GOAL} --from search --json".split()) == 0
    expected = {**SHARED_KEYS, **MEASURE_KEYS, **GOAL_KEYS}
    options = RunOptions("b", recipe=Path("a/b.yaml"), overrides=expected, from_stage="search")
    assert fake.asked == [(None, options)]


def test_run_continues_a_begun_run(fake: FakePipeline) -> None:
    assert main(["run", "--run", "x", "--only", "bench", "--json", "-q"]) == 0
    assert fake.asked == [(None, RunOptions("x", only_stage="bench", verbose=-1))]


@pytest.mark.parametrize(
    "arguments", ["report --run x", "run --run x", "run --run x --only report"]
)
def test_a_whole_run_and_its_report_end_with_the_summary(
    fake: FakePipeline, capsys: pytest.CaptureFixture[str], arguments: str
) -> None:
    fake.result = {"original": {"convs": 21}, "merged": {"convs": 9}, "speedup": 2.0}
    assert main(arguments.split()) == 0
    assert "2.00x" in capsys.readouterr().out


def test_a_single_stage_of_a_run_shows_its_own_result(
    fake: FakePipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.result = {"max_rel_error": 0.5}
    assert main(["run", "--run", "x", "--only", "merge"]) == 0
    assert capsys.readouterr().out.split() == ["max", "rel", "error", "0.5"]


def test_build_fails_if_no_engine_was_built(
    fake: FakePipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    refused, built = engine("merged", "fp32", "no TensorRT here"), engine("merged", "fp16")
    fake.result = {"engines": [refused]}
    assert main(["build", "--run", "x"]) == 4
    assert capsys.readouterr().err == "error: no TensorRT here\n"
    fake.result = {"engines": [refused, built]}
    assert main(["build", "--run", "x"]) == 0


def test_every_stage_has_a_verb_and_every_verb_says_what_it_does() -> None:
    names = [verb.__name__ for verb in VERBS]
    assert set(names) == {*STAGES, "doctor", "run", "runs", "status", "agent", "package", "rebuild"}
    assert all(verb.__doc__ for verb in VERBS)


def test_any_key_of_the_recipe_can_be_set() -> None:
    options = SharedOptions(settings=["finetune.options.epochs=3", "search.mode=layer"], seed=7)
    assert overrides(options) == {
        "finetune.options.epochs": 3,
        "search.mode": "layer",
        "seed": 7,
    }


@pytest.mark.parametrize("text", ["search.mode", "=3", "search..mode=3", "a=[1"])
def test_a_setting_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="KEY=VALUE"):
        overrides(SharedOptions(settings=[text]))


def test_several_speedups_are_typed_with_commas(fake: FakePipeline) -> None:
    assert main(["search", "--run", "mine", "--speedup", "1.25,1.5x,2"]) == 0
    assert fake.asked[0][1].overrides == {"search.speedup": [1.25, 1.5, 2.0]}


def test_a_speedup_that_is_no_number_is_refused(
    fake: FakePipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "--run", "mine", "--speedup", "1.5,fast"]) == UsageError.exit_code
    assert "'1.5,fast' is no factor" in capsys.readouterr().err


@pytest.mark.parametrize("code", [5, 6])
def test_what_several_speedups_missed_ends_with_its_code_after_the_table(
    fake: FakePipeline, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    row = {"run": "mine-9x", "speedup": 9.0, "exit_code": code, "error": "too much"}
    fake.result = {"plans": [row]}
    assert main(["search", "--run", "mine", "--speedup", "9,10"]) == code
    told = capsys.readouterr()
    assert "9.00x" in told.out
    assert "mine-9x: too much" in told.err
