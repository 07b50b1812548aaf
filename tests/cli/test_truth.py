"""What a run says of itself holds: nothing is told of files, a recipe or a stage that changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.cli import test_dense
from tests.pipeline import tiny
from trt_layermerge.cli.main import main
from trt_layermerge.pipeline.recipe import Recipe, load_recipe

TELLING = ("verify", "bench", "report", "package")


@pytest.fixture(scope="module")
def kept(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with ``project``, a finished run with its own files, and a copy of that."""
    folder = tmp_path_factory.mktemp("truth")
    project = folder / "project"
    shutil.copytree(finished, project, ignore=shutil.ignore_patterns("__pycache__"))
    tiny.run(project / "runs", project / "tiny.yaml")  # its files are others by name
    shutil.copytree(project, folder / "copy")
    return folder


@pytest.fixture
def project(kept: Path) -> Path:
    """Returns that project as it was, to be changed."""
    shutil.rmtree(kept / "project")
    return Path(shutil.copytree(kept / "copy", kept / "project"))


def typed(project: Path, capsys: pytest.CaptureFixture[str], words: str) -> tuple[int, str, str]:
    """Returns exit code, result and messages of a command about the run of a project."""
    code = main([*words.split(), "--run", "tiny", "--runs-dir", str(project / "runs")])
    return code, *capsys.readouterr()


def recipe_of(project: Path) -> Recipe:
    return load_recipe(project / "runs" / "tiny" / "recipe.yaml", {})


def other_weights(project: Path) -> None:
    path = project / "tiny.safetensors"
    save_file({**load_file(path), "head.bias": load_file(path)["head.bias"] + 1}, path)


def other_labels(project: Path) -> None:
    images = np.load(project / "test.npz")
    np.savez(project / "test.npz", images=images["images"], labels=(images["labels"] + 1) % 4)


def other_training_images(project: Path) -> None:
    images, labels = tiny.stripes(80, 7)
    np.savez(project / "train.npz", images=images, labels=labels)


@pytest.mark.parametrize(
    ("change", "options", "stage", "what", "verbs"),
    [
        (other_weights, "", "inspect", "model", TELLING),
        (other_training_images, "", "importance", "train", TELLING),
        (other_labels, "", "verify", "test", TELLING[2:]),
        (None, "--set search.speedup=2", "search", "search", TELLING),
        (None, "--set finetune.options.epochs=1", "finetune", "finetune", TELLING),
    ],
)
def test_nothing_is_told_of_what_has_changed_since(
    project: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], None] | None,
    options: str,
    stage: str,
    what: str,
    verbs: tuple[str, ...],
) -> None:
    if change is not None:
        change(project)
    before = tiny.files(project / "runs")
    for verb in verbs:
        more = "--for plain" if verb == "package" else ""
        code, out, err = typed(project, capsys, f"{verb} {more} {options}")
        assert (code, out) == (2, ""), verb
        assert f"{stage} of the run 'tiny' was done with other settings or files" in err
        assert f"({what})" in err and "trt-layermerge run --run tiny" in err
    assert tiny.files(project / "runs") == before


def test_a_run_does_again_what_follows_from_changed_weights(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other_weights(project)
    code, _, err = typed(project, capsys, "run")
    assert code == 0 and "✓ inspect" in err and "✓ report" in err
    for verb in TELLING[:3]:
        assert typed(project, capsys, verb)[0] == 0


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("search --speedup 50", 6),
        ("finetune --preset longer", 2),
        ("run --speedup 50", 6),
        ("run --set finetune.preset=longer --speedup 1.2", 2),
        ("calibrate --set calibrate.options.method=guess", 2),
    ],
)
def test_what_failed_is_not_remembered_nor_bundled(
    project: Path, capsys: pytest.CaptureFixture[str], words: str, code: int
) -> None:
    plan = (project / "runs" / "tiny" / "plan.json").read_bytes()
    assert typed(project, capsys, words)[0] == code
    found = recipe_of(project)
    assert found.search.speedup == 1.3 and found.finetune.preset == "short"
    assert "int8" not in found.build.precisions
    assert (project / "runs" / "tiny" / "plan.json").read_bytes() == plan
    assert typed(project, capsys, "package --for plain")[0] == 0
    bundled = load_recipe(project / "runs" / "tiny" / "deploy" / "plain" / "recipe.yaml", {})
    assert bundled.search == found.search and bundled.finetune == found.finetune


@pytest.mark.parametrize(
    "options",
    ["--set measure.rounds=4", "--backend torch", "--set build.options.tf32=true", "--device cuda"],
)
def test_a_bundle_ships_the_recipe_that_made_its_network(
    project: Path, capsys: pytest.CaptureFixture[str], options: str
) -> None:
    code, _, err = typed(project, capsys, f"package --for plain {options}")
    assert code == 2 and "--run tiny" in err
    assert not (project / "runs" / "tiny" / "deploy").exists()
    assert typed(project, capsys, "package --for plain --precision fp32")[0] == 0
    bundled = load_recipe(project / "runs" / "tiny" / "deploy" / "plain" / "recipe.yaml", {})
    made = recipe_of(project)
    assert bundled == made and made.measure.rounds == 3 and made.package.targets == ("plain",)


@pytest.mark.parametrize("options", ["--weights none.safetensors", "--model {project}/nets.py:no"])
def test_a_failed_beginning_leaves_nothing(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str
) -> None:
    for verb in (f"inspect --recipe {finished}/tiny.yaml", f"run {finished}/tiny.yaml"):
        assert typed(tmp_path, capsys, f"{verb} {options.format(project=finished)}")[0] == 2
        assert not list(tmp_path.iterdir())


def test_a_failed_gate_is_the_first_thing_on_the_page(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = typed(project, capsys, "run --set verify.max_latency_ms=1e-9")
    assert code == 6 and "1e-09 ms are allowed" in err
    folder = project / "runs" / "tiny"
    html, markdown = ((folder / f"report.{kind}").read_text() for kind in ("html", "md"))
    body = html[html.index("<main>") :]
    assert body.index("1e-09 ms are allowed") < body.index('class="answer')
    assert "beyond its limits" in html[: html.index("<main>")]
    assert markdown.index("1e-09 ms are allowed") < markdown.index("How much faster?")
    assert "1e-09" in json.loads((folder / "summary.json").read_text())["failed_gates"][0]
    assert "A LIMIT IS EXCEEDED" in typed(project, capsys, "report")[1]
    assert typed(project, capsys, "package --for plain")[0] == 6


def test_an_original_that_guesses_is_told_and_nothing_is_proven(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nets.py").write_text(test_dense.NETS)
    recipe = test_dense.RECIPE.format(name="pose", task="")
    (tmp_path / "tiny.yaml").write_text(recipe)
    for seed, split in enumerate(("train", "test")):
        rng = np.random.default_rng(seed)
        np.savez(
            tmp_path / f"{split}.npz",
            images=rng.integers(0, 256, (80, 16, 16, 3), dtype=np.uint8),
            labels=np.arange(80) % 4,  # of no kind that the network knows
            class_names=["a", "b", "c", "d"],
        )
    assert typed(tmp_path, capsys, f"run {tmp_path}/tiny.yaml")[0] == 0
    told = "no better than guessing: the classes are in another order"
    assert told in " ".join(typed(tmp_path, capsys, "verify")[1].split())
    page = (tmp_path / "runs" / "tiny" / "report.html").read_text()
    assert told in page and "Not proven" in page
