"""What merging cost where there are no labels, and what is known before the first measurement."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.pipeline import tiny
from trt_layermerge.cli.main import main
from trt_layermerge.core.agreement import distances, probabilities
from trt_layermerge.pipeline import room


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a finished run whose images have no labels, and which was hardly trained."""
    folder = tmp_path_factory.mktemp("unlabelled")
    recipe = tiny.write_project(folder)
    for split in ("train", "val", "test"):
        images = np.load(folder / f"{split}.npz")["images"]
        np.savez(folder / f"{split}.npz", images=images)
    hardly = "finetune: {preset: none}"
    text = recipe.read_text().replace(
        "finetune: {preset: short, options: {epochs: 2, batch: 32}}", hardly
    )
    recipe.write_text(text.replace("speedup: 1.3", "speedup: 1.6"))
    assert main(["run", str(recipe), "--runs-dir", str(folder / "runs"), "-q"]) == 0
    return folder


@pytest.fixture
def runs(project: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(project / "runs", tmp_path / "runs"))


def typed(runs: Path, capsys: pytest.CaptureFixture[str], words: str) -> tuple[int, str, str]:
    code = main([*words.split(), "--run", "tiny", "--runs-dir", str(runs)])
    return code, *capsys.readouterr()


def verified(runs: Path) -> dict[str, Any]:
    return json.loads((runs / "tiny" / "verify.json").read_text())


def test_agreement_is_told_in_the_terminal_and_on_the_card(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = verified(runs)
    assert body["on"] == "test images" and body["images"] == 96
    (found,) = body["fidelity"].values()
    assert 0 < found["agreement"] < 1 and found["kl"] > 0
    share = f"{100 * found['agreement']:.2f} %"
    words = " ".join(typed(runs, capsys, "verify")[1].split())
    assert f"96 test images; original and merged answer alike on {share}, KL " in words
    assert "class " in words
    assert f"{share} of 96 test images" in " ".join(typed(runs, capsys, "report")[1].split())
    page = (runs / "tiny" / "report.html").read_text()
    assert "What did it keep?" in page and "KL " in page and "Classes that lost most" in page


def test_images_whose_answer_changed_are_shown(runs: Path) -> None:
    body = verified(runs)
    rows = body["changed"]
    (found,) = body["fidelity"].values()
    assert len(rows) == min(12, round(96 * (1 - found["agreement"])))
    assert [r["original_confidence"] for r in rows] == sorted(
        (r["original_confidence"] for r in rows), reverse=True
    )
    for row in rows:
        assert row["original"] != row["merged"] and 0.25 < row["merged_confidence"] <= 1
        picture = (runs / "tiny" / row["picture"]).read_bytes()
        assert picture.startswith(b"\xff\xd8") and len(picture) < 8000
    page = (runs / "tiny" / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == len(rows)


def test_a_limit_on_agreement_needs_no_labels(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    share = verified(runs)["least_agreement"]
    assert typed(runs, capsys, f"verify --min-agreement {share - 0.01}")[0] == 0
    code, _, err = typed(runs, capsys, f"verify --min-agreement {share + 0.001}")
    assert code == 5 and "verify.min_agreement" in err and "of 96 images" in err
    assert typed(runs, capsys, "package --for plain")[0] == 5
    typed(runs, capsys, "report")
    page = (runs / "tiny" / "report.html").read_text()
    assert page.index("verify.min_agreement") < page.index('class="answer')
    assert 'class="answer bad"><h2>What did it keep?' in page


def test_distances_are_what_the_formulas_say() -> None:
    logits = np.array([[0.0, np.log(3)], [5.0, 5.0]])
    other = np.array([[np.log(3), 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(probabilities(logits), [[0.25, 0.75], [0.5, 0.5]], atol=1e-15)
    kl = 0.25 * np.log(0.25 / 0.75) + 0.75 * np.log(0.75 / 0.25)
    np.testing.assert_allclose(distances(logits, other, "classes"), [kl, 0], atol=1e-12)
    found = distances(np.array([[3.0, 4.0]]), np.array([[3.0, 1.0]]), "values")
    np.testing.assert_allclose(found, [0.6], atol=1e-12)  # 3 over 5
    dense = np.zeros((1, 2, 1, 2))
    dense[0, 1, 0, 0] = np.log(3)
    half = np.log(0.25 / 0.5) * 0.25 + np.log(0.75 / 0.5) * 0.75
    far = distances(dense, np.zeros_like(dense), "classes")
    np.testing.assert_allclose(far, [half / 2], atol=1e-12)  # one of two pixels differs
    assert distances(logits, logits * np.nan, "values")[0] == np.inf


BEGIN = "run {project}/tiny.yaml"


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("--set verify.max_accuracy_drop=0.01", 2, "verify.min_agreement=0.95"),
        ("--set verify.max_accuracy_drop=0.01 --test {project}/own.py:images", 2, "labels"),
        ("--weights {project}/large.safetensors --precision fp16", 3, "itself cannot be fp16"),
        (
            "--set measure.recorded=true --set verify.max_latency_ms=1",
            2,
            "nothing is timed; give the limit as the goal",
        ),
    ],
)
def test_what_cannot_end_well_does_not_begin(
    project: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: str,
    code: int,
    words: str,
) -> None:
    weights = load_file(project / "tiny.safetensors")
    weights["head.weight"] = weights["head.weight"] + 1e6
    save_file(weights, project / "large.safetensors")
    (project / "own.py").write_text(
        "import torch\n"
        "class Own(torch.utils.data.Dataset):\n"
        "    def __len__(self):\n        return 4\n"
        "    def __getitem__(self, i):\n        return torch.zeros(3, 16, 16)\n"
        "images = Own\n"
    )
    found, _, err = typed(tmp_path, capsys, f"{BEGIN} {options}".format(project=project))
    assert found == code, err
    assert words in err, err
    assert not (tmp_path / "tiny" / "latency.jsonl").exists()


def test_too_little_disk_or_memory_is_told_before_anything_is_measured(
    project: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(words: str) -> None:
        code, _, err = typed(tmp_path, capsys, BEGIN.format(project=project))
        assert code == 4 and words in err, err
        assert not (tmp_path / "tiny" / "latency.jsonl").exists()

    with monkeypatch.context() as patch:
        patch.setattr(room, "available_memory", lambda: 1000)
        refused("of memory are free")
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 1000))
    refused("MiB free, and a run of this network writes")


def test_few_and_foreign_images_are_warned_about(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    dark = rng.integers(0, 40, (40, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "dark.npz", images=dark)
    begin = f"{BEGIN.format(project=project)} --set search.speedup=1.2"
    err = typed(tmp_path / "own", capsys, begin)[2]
    assert "look foreign" not in err and "training images only" not in err
    code, _, err = typed(tmp_path / "other", capsys, f"{begin} --train npz:{tmp_path}/dark.npz")
    assert "look foreign to this network" in err and "there are 40 training images only" in err
    assert code == 0
    notes = json.loads((tmp_path / "other" / "tiny" / "summary.json").read_text())["notes"]
    assert sum("training images" in note for note in notes) == 2
