"""What pages tell people to type exists: verbs, options, keys, targets, extras and modules."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any, get_type_hints

import pytest
import typer.main

from benchmarks.manual.site import ROOT
from tests.docs.pages import PAGES, typed
from trt_layermerge.cli.app import VERBS, app
from trt_layermerge.cli.verb import overrides
from trt_layermerge.pipeline.recipe import Recipe, load_recipe

OTHERS = {
    *("accelerate", "apt-get", "cd", "cp", "dpkg-deb", "for", "python", "python3", "ray"),
    *("examples/journeys/labelled.sh", "examples/journeys/photographs.sh"),
    *("examples/pipeline/deploy.sh", "polygraphy", "scp", "ssh", "torchrun", "tritonserver"),
}
"""What is not ours. (``test_debugging`` runs Polygraphy.)"""

COMMANDS = [(page, words) for page in PAGES for words in typed(page)]


def lines(program: str) -> list[Any]:
    """Returns the arguments of every use of a program, as parameters of a test."""
    found = []
    for page, words in COMMANDS:
        if words[0] == program:
            found.append(pytest.param(words[1:], id=f"{page}: {' '.join(words)}"))
        elif program == "trt-layermerge" and "trt_layermerge" in words:  # by a launcher
            after = words[words.index("trt_layermerge") + 1 :]
            found.append(pytest.param(after, id=f"{page}: {' '.join(after)}"))
    assert found, program
    return found


def recipe_of(words: list[str]) -> Recipe:
    """Returns what a command makes of a recipe. Raises whatever the command line raises."""
    verb = next(verb for verb in VERBS if verb.__name__ == words[0])
    command = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    given = command.make_context(words[0], list(words[1:])).params
    options = get_type_hints(verb)["options"](**given)
    return load_recipe(None, {"model.name": "timm:resnet18", **overrides(options)})


@pytest.mark.parametrize("words", lines("trt-layermerge"))
def test_verbs_options_and_keys_exist(words: list[str]) -> None:
    if words == ["--install-completion"]:
        return
    if len(words) > 1 and "--help" not in words:
        recipe_of(words)
    else:  # a sentence about a verb
        assert words[0] in {"VERB", *(verb.__name__ for verb in VERBS)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "--run", "mine", "--no-such-option"], "--no-such-option"),
        (["search", "--run", "mine", "--mode", "no-such-mode"], "no-such-mode"),
        (["search", "--run", "mine", "--set", "search.no_such_key=1"], "no_such_key"),
        (["search", "--mode", "depth"], "Missing .*run"),
    ],
)
def test_the_negative_controls_fail(words: list[str], message: str) -> None:
    with pytest.raises(Exception, match=message):
        recipe_of(words)


def test_only_known_programs_are_typed() -> None:
    known = {*OTHERS, "make", "pip", "trt-layermerge"}
    assert {(page, words[0]) for page, words in COMMANDS if words[0] not in known} == set()


@pytest.mark.parametrize("words", lines("make"))
def test_targets_exist(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{re.escape(name)}:", makefile, re.MULTILINE) for name in words)


@pytest.mark.parametrize("words", lines("pip"))
def test_extras_exist(words: list[str]) -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = re.findall(r"(?:^|\s)(?:\.|trt-layermerge)\[(.*?)\]", " ".join(words))
    assert {name for names in wanted for name in names.split(",")} <= (
        project["optional-dependencies"].keys()
    )


@pytest.mark.parametrize("words", lines("python"))
def test_modules_and_scripts_exist(words: list[str]) -> None:
    if words[0] == "-m":
        assert find_spec(words[1]) is not None
    else:
        assert list(ROOT.glob(words[0])) or list(ROOT.glob(f"examples/**/{words[0]}"))
