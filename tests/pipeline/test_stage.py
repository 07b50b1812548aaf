"""When a stage has to be done again because the code has changed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.pipeline import tiny
from trt_layermerge.pipeline import stage
from trt_layermerge.pipeline.api import run_stage
from trt_layermerge.pipeline.options import RunOptions


def states(runs: Path) -> list[str]:
    told = tiny.Recorder()
    run_stage("inspect", RunOptions("tiny", runs), told)
    return [state for _, state in told.events]


def test_what_other_code_made_is_made_again(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(runs) == ["skip"]
    monkeypatch.setattr(stage, "code_hash", lambda: "of other code")
    assert states(runs) == ["run", "done"]
    assert states(runs) == ["skip"]


def test_every_byte_and_every_name_of_the_code_counts(tmp_path: Path) -> None:
    sources = {"one.py": "a = 1\n", "room/two.py": "b = 2\n", "room/three.py": ""}

    def hashed(files: dict[str, str]) -> str:
        stage.code_hash.cache_clear()
        for path in tmp_path.rglob("*.*"):
            path.unlink()
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        return stage.code_hash(tmp_path)

    first = hashed(sources)
    assert hashed({**sources, "notes.txt": "not code"}) == first
    assert hashed({**sources, "one.py": "a = 2\n"}) != first
    assert hashed({**sources, "room/two.py": "b = 3\n"}) != first
    assert hashed({**sources, "four.py": ""}) != first
    assert hashed({"two.py": "b = 2\n", "room/one.py": "a = 1\n", "room/three.py": ""}) != first
    assert hashed({**sources, "one.py": "", "room/three.py": "a = 1\n"}) != first
    assert hashed(sources) == first


def test_the_code_is_read_once_a_process_and_quickly() -> None:
    stage.code_hash.cache_clear()
    started = time.process_time()
    first = stage.code_hash()
    assert time.process_time() - started < 0.5
    assert stage.code_hash() is first
    assert stage.PACKAGE.name == "trt_layermerge" and (stage.PACKAGE / "errors.py").is_file()
