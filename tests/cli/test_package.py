"""``package`` and ``rebuild`` as they are typed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.fakes import FakePipeline
from trt_layermerge import pipeline
from trt_layermerge.cli.main import main
from trt_layermerge.errors import UntrustedInputError
from trt_layermerge.pipeline.options import RunOptions
from trt_layermerge.pipeline.recipe import Recipe, load_recipe

RESULT: dict[str, Any] = {
    "target": "plain",
    "precision": "fp16",
    "engine": "tensorrt 10.3.0",
    "bundle": "deploy/plain",
    "note": None,
    "details": {"gpu": "Orin"},
}


def test_every_option_of_package_is_a_key_of_the_recipe(fake: FakePipeline) -> None:
    typed = "--for plain --for isaac-ros --bake-preprocess --precision fp16"
    assert main(f"package --run x --runs-dir a {typed} --json".split()) == 0
    keys = {
        "package.targets": ["plain", "isaac-ros"],
        "package.bake_preprocess": True,
        "package.precision": "fp16",
    }
    assert fake.asked == [("package", RunOptions("x", Path("a"), overrides=keys))]
    section = load_recipe(None, {**keys, "model.name": "timm:x"}).package
    assert (section.targets, section.bake_preprocess) == (("plain", "isaac-ros"), True)


def test_declining_is_not_the_same_as_saying_nothing(fake: FakePipeline) -> None:
    main(["package", "--run", "x", "--json"])
    main(["package", "--run", "x", "--json", "--no-bake-preprocess"])
    assert [o.overrides for _, o in fake.asked] == [{}, {"package.bake_preprocess": False}]


def test_bundles_are_shown_in_a_table(
    fake: FakePipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.result = {"bundles": [RESULT]}
    assert main(["package", "--run", "x"]) == 0
    shown = capsys.readouterr().out
    assert "tensorrt 10.3.0" in shown and "details" not in shown


def test_rebuild(
    fake: FakePipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Any, ...]] = []

    def rebuild(*arguments: Any) -> dict[str, Any]:
        asked.append(arguments)
        return RESULT

    monkeypatch.setattr(pipeline.api, "rebuild", rebuild, raising=False)  # type: ignore[attr-defined]
    assert main(["rebuild", "b", "--backend", "tensorrt", "--precision", "fp32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == RESULT
    assert main(["rebuild", "b"]) == 0
    assert "tensorrt 10.3.0" in capsys.readouterr().out
    assert asked == [(Path("b"), "tensorrt", "fp32"), (Path("b"), None, None)]


def test_a_tampered_bundle_is_7(
    fake: FakePipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise UntrustedInputError("not the one that was packaged")

    monkeypatch.setattr(pipeline.api, "rebuild", refuse, raising=False)  # type: ignore[attr-defined]
    assert main(["rebuild", "b"]) == 7
    assert capsys.readouterr().err == "error: not the one that was packaged\n"


@pytest.mark.parametrize("typed", ["package --run x --for windows", "rebuild nowhere"])
def test_what_cannot_be_is_a_usage_error(
    typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*typed.split(), *(["--model", "timm:x"] if "package" in typed else [])]) == 2
    assert capsys.readouterr().err.startswith("error: ")


DOCS = Path(__file__).parents[2] / "docs" / "deploying.md"
TYPED = re.findall(r"^trt-layermerge (.*)$", DOCS.read_text(), re.MULTILINE)


@pytest.mark.parametrize("line", TYPED)
def test_what_the_docs_tell_to_type_exists(
    fake: FakePipeline, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setattr(pipeline.api, "rebuild", lambda *_: RESULT, raising=False)  # type: ignore[attr-defined]
    assert {words.split()[0] for words in TYPED} == {"package", "rebuild"}
    assert main([*line.split(), "--json"]) == 0


def test_the_recipe_in_the_docs_is_one() -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    body = {"model": {"name": "timm:x"}, **yaml.safe_load(block)}
    assert Recipe.model_validate(body).package.precision == "fp16"
