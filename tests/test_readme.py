"""Everything that README.md tells people to type exists, and its examples run."""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
import yaml

import trt_layermerge
from tests.cli.fakes import install
from trt_layermerge.cli.main import main
from trt_layermerge.pipeline.recipe import Recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    found = [text for name, text in BLOCKS if name == language]
    assert found, f"no {language} block in README.md"
    return found


TYPED = [line for text in blocks("console") for line in text.splitlines() if line.strip()]
TYPED += re.findall(r"`((?:make|trt-layermerge) [^`]+)`", README)


def typed(command: str) -> list[list[str]]:
    """Returns the arguments of every use of a command, each once."""
    lines = [shlex.split(line) for line in dict.fromkeys(TYPED)]
    found = [words[1:] for words in lines if words[0] == command]
    assert found, command
    return found


def test_only_known_commands_are_typed() -> None:
    assert {line.split()[0] for line in TYPED} == {"cp", "make", "pip", "trt-layermerge"}


@pytest.mark.parametrize("words", typed("make"), ids=" ".join)
def test_make_targets_exist(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in words:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("words", typed("trt-layermerge"), ids=" ".join)
def test_verbs_and_options_exist(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = install(monkeypatch)
    if words[0] == "doctor":  # asks the machine, not the pipeline
        assert main([*words, "--help"]) == 0
        return
    assert main([*words, "--json"]) == 0, capsys.readouterr().err
    assert len(fake.asked) + len(fake.rebuilt) == 1


@pytest.mark.parametrize("words", typed("pip"), ids=" ".join)
def test_extras_exist(words: list[str]) -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = re.findall(r"\[(.*?)\]", " ".join(words))[0].split(",")
    assert set(wanted) <= project["optional-dependencies"].keys()


@pytest.mark.parametrize("text", blocks("yaml"))
def test_recipes_are_valid(text: str) -> None:
    Recipe.model_validate(yaml.safe_load(text))


QUICK = {
    "measure": {"backend": "fake", "rounds": 3, "networks": 3},
    "search": {
        "limits": {"max_units": 2},
        "finalists": 2,
        "loops": 1,
        "samples": 0,
        "race_steps": 0,
    },
    "importance": {"fit_images": 8, "score_images": 8},
    "finetune": {"preset": "none"},
}
"""Settings under which the whole way takes seconds."""


@pytest.mark.parametrize("text", blocks("python"))
def test_python_examples_run(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 4
    given = {
        "__name__": "readme",
        "model": torchvision.models.resnet18(num_classes=4).eval(),
        "train_loader": [(images, labels)],
        "test_loader": [(images, labels)],
        "example_inputs": images[:1],
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        trt_layermerge, "compress", partial(trt_layermerge.compress, settings=QUICK)
    )
    exec(compile(text, "README.md", "exec"), given)
    assert capsys.readouterr().out.startswith("True ")
    assert (tmp_path / "model.onnx").is_file()


def test_relative_links_resolve() -> None:
    links = re.findall(r"\]\(([^)#]+)", README)
    local = [link for link in links if "://" not in link]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_the_negative_controls_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    assert main(["search", "--run", "mine", "--no-such-option"]) == 2
    assert main(["no-such-verb"]) == 2


def test_every_recipe_of_the_repository_is_valid() -> None:
    recipes = [*(ROOT / "engines" / "recipes").glob("*.yaml"), *ROOT.glob("examples/*/*.yaml")]
    assert len({path.parent for path in recipes}) > 1
    for path in recipes:
        Recipe.model_validate(yaml.safe_load(path.read_text()))
