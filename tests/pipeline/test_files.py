"""Files of a run that are well-formed, noted as right, and lack what is read of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.faults.verbs import note
from trt_layermerge.cli.main import main
from trt_layermerge.core.jsonio import Json
from trt_layermerge.pipeline.files import read_body, read_history


def without(*path: str) -> Callable[[Json], None]:
    return changed(*path, to=None, remove=True)


def changed(*path: str, to: object, remove: bool = False) -> Callable[[Json], None]:
    def change(body: Json) -> None:
        *above, last = path
        for name in above:
            body = body[name]
        if remove:
            del body[last]
        else:
            body[last] = to

    return change


BODIES = [
    ("bench.json", "report", without("original")),
    ("bench.json", "report", changed("precisions", to=[])),
    ("bench.json", "bench", changed("int8", to=7)),
    ("bench.json", "report", changed("original", "p50_ms", to="fast")),
    ("bench.json", "report", changed("speedup", to=-1)),
    ("frontier.json", "report", changed("prediction", "fit", to=None)),
    ("frontier.json", "report", changed("plans", to=[{"changes": 7}])),
    ("frontier.json", "search", without("points")),
    ("finalists.json", "report", without("finalists")),
    ("verify.json", "report", changed("images", to=None)),
    ("verify.json", "verify", without("failed_gate")),
    ("certificate.json", "report", changed("max_rel_error", to="none")),
    ("certificate.json", "merge", changed("checks", to={})),
    ("export.json", "bench", without("models", "model.onnx")),
    ("export.json", "report", without("models", "model.onnx")),
    ("export.json", "report", changed("models", "model.onnx", "inputs", to={})),
    ("calibration.json", "report", changed("networks", to=[])),
    ("build.json", "report", changed("engines", to=[{}])),
    ("summary.json", "report", changed("speedup", to="nan")),
]


@pytest.mark.parametrize(
    ("name", "verb", "change"), BODIES, ids=[f"{name}-{verb}" for name, verb, _ in BODIES]
)
def test_a_field_that_is_missing_or_malformed_is_damage_and_no_bug(
    runs: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    verb: str,
    change: Callable[[Json], None],
) -> None:
    path = runs / "tiny" / name
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))
    note(runs / "tiny", name)
    again = ("--set", "search.finalists=3") if verb == "search" else ()
    if (name, verb) == ("export.json", "bench"):
        again = ("--batch", "1")
    code = main([verb, "--run", "tiny", "--runs-dir", str(runs), "-q", *again])
    said = capsys.readouterr().err
    assert code in ((0, 7) if again else (7,)), said
    assert "This is a bug" not in said
    assert again or "is damaged: a field is missing or malformed" in said or "not usable" in said


def test_a_history_of_a_training_lacks_a_field(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = runs / "tiny" / "finetune.jsonl"
    path.write_text(path.read_text().replace('"loss"', '"lost"', 1))
    note(runs / "tiny", path.name)
    assert main(["report", "--run", "tiny", "--runs-dir", str(runs), "-q"]) == 7
    assert "finetune.jsonl is damaged: a field is missing" in capsys.readouterr().err


def test_what_stages_write_is_as_it_is_read(finished: Path) -> None:
    run = finished / "runs" / "tiny"
    for kind in ("bench", "verify", "certificate", "export", "frontier", "finalists", "build"):
        path = run / f"{kind}.json"
        assert read_body(path, kind) == json.loads(path.read_text())
    assert read_body(run / "calibration.json", "calibrations")["networks"] == {}
    assert [row["epoch"] for row in read_history(run / "finetune.jsonl")["rows"]] == [1, 2]
