"""A manifest is believed only as far as it proves itself."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.agent import folders
from trt_layermerge.core.jsonio import Json
from trt_layermerge.errors import CorruptInputError, UsageError
from trt_layermerge.measure.agent import jobs as agent_jobs
from trt_layermerge.measure.agent.jobs import ModelFile, Protocol, load_manifest, read_model
from trt_layermerge.measure.jobs import Job, write_jobs


def test_a_folder_is_read_as_it_was_written(tmp_path: Path) -> None:
    body = folders.body(tmp_path, {"a": ["one"], "b": ["one", "two"]}, sentinel="a")
    manifest = load_manifest(folders.write(tmp_path, body))
    assert (manifest.backend, manifest.rounds, manifest.burst_ms) == ("fake", 3, 0.5)
    assert (manifest.timeout_s, manifest.sentinel, manifest.sentinel_every) == (20, "a", 4)
    assert [(j.key, j.label, len(j.models)) for j in manifest.jobs.values()] == [
        ("a", "label of a", 1),
        ("b", "label of b", 2),
    ]
    assert read_model(tmp_path, manifest.jobs["b"].models[1]) == folders.model("two")


def test_what_the_exporter_writes_is_taken(tmp_path: Path) -> None:
    pair = b"original", b"merged"
    jobs = [Job("spec", (b"s",)), Job("pair", pair), Job("pair", pair, 1)]
    identity = write_jobs(tmp_path, jobs, Protocol("fake", rounds=4), b"watch")
    manifest = load_manifest(tmp_path)
    assert manifest.id == identity
    assert manifest.rounds == 4
    assert [job.label for job in manifest.jobs.values()] == ["sentinel", "spec", "pair", "pair"]
    assert manifest.sentinel == next(iter(manifest.jobs))
    for job in manifest.jobs.values():
        for model in job.models:
            read_model(tmp_path, model)


def test_models_that_are_built_again_are_built_anew(tmp_path: Path) -> None:
    """A second build of the same network would otherwise take over the kernels of the first."""
    body = folders.body(tmp_path, {"a": ["x"], "b": ["x", "y"], "c": ["x", "y"], "d": ["z"]})
    manifest = load_manifest(folders.write(tmp_path, body))
    assert [job.anew for job in manifest.jobs.values()] == [False, True, True, False]


def change(*path: Any, to: Any) -> Callable[[Json], None]:
    def work(body: Any) -> None:
        for step in path[:-1]:
            body = body[step]
        body[path[-1]] = to

    return work


MODEL = ("jobs", 0, "models", 0)


@pytest.mark.parametrize(
    "spoil",
    [
        change("backend", to=""),
        change("rounds", to=0),
        change("rounds", to=10**9),
        change("rounds", to="20"),
        change("rounds", to=True),
        change("burst_ms", to=float("nan")),
        change("timeout_s", to=0),
        change("sentinel", to="nobody"),
        change("sentinel", to="b"),
        change("sentinel_every", to=0),
        change("jobs", to={}),
        change("jobs", 0, "key", to="b"),
        change("jobs", 0, "key", to=7),
        change("jobs", 0, "models", to=[]),
        change(*MODEL, "sha256", to="00"),
        change(*MODEL, "sha256", to="Z" * 64),
        change(*MODEL, "file", to="../secret.onnx"),
        change(*MODEL, "file", to="models/../../secret.onnx"),
        change(*MODEL, "file", to="/etc/passwd"),
        change(*MODEL, "file", to="models/sub/x.onnx"),
        change(*MODEL, "file", to="models/.onnx"),
        change(*MODEL, "file", to="models/x.onnx\0"),
        change(*MODEL, "file", to="models/x.onnx\n"),
        change(*MODEL, "file", to=None),
    ],
)
def test_a_manifest_that_asks_for_nonsense_is_refused(
    tmp_path: Path, spoil: Callable[[Json], None]
) -> None:
    body = folders.body(tmp_path, {"a": ["one"], "b": ["one", "two"]})
    load_manifest(folders.write(tmp_path, body))
    spoil(body)
    with pytest.raises(CorruptInputError):
        load_manifest(folders.write(tmp_path, body))


def test_a_manifest_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = folders.singles(tmp_path, 2) / "manifest.json"
    path.write_text(path.read_text().replace('"rounds": 3', '"rounds": 9'))
    with pytest.raises(CorruptInputError, match="changed after it was written"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": "trt-layermerge/plan@1"}'])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CorruptInputError):
        load_manifest(tmp_path)


def test_a_folder_without_a_manifest_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="latency --export-jobs"):
        load_manifest(tmp_path / "nowhere")


def a_model(folder: Path) -> ModelFile:
    return load_manifest(folders.singles(folder, 1)).jobs["k0"].models[0]


def test_a_damaged_model_is_refused(tmp_path: Path) -> None:
    model = a_model(tmp_path)
    (tmp_path / model.file).write_bytes(folders.model("m1"))
    with pytest.raises(CorruptInputError, match="has not the hash"):
        read_model(tmp_path, model)


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    model = a_model(tmp_path)
    (tmp_path / model.file).unlink()
    with pytest.raises(CorruptInputError, match="No such file"):
        read_model(tmp_path, model)


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    model = a_model(tmp_path)
    (tmp_path / model.file).unlink()
    (tmp_path / model.file).symlink_to(Path(model.file).name)
    with pytest.raises(CorruptInputError, match="symbolic links"):
        read_model(tmp_path, model)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    """Even where what it points to has the right hash: the folder must be complete."""
    folder = tmp_path / "jobs"
    model = a_model(folder)
    os.rename(folder / model.file, tmp_path / "outside.onnx")
    (folder / model.file).symlink_to(tmp_path / "outside.onnx")
    with pytest.raises(CorruptInputError, match="link out of its folder"):
        read_model(folder, model)


def test_a_model_beyond_the_limit_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = a_model(tmp_path)
    monkeypatch.setattr(agent_jobs, "MOST_MODEL_BYTES", 3)
    with pytest.raises(CorruptInputError, match="larger than"):
        read_model(tmp_path, model)


def test_the_id_covers_everything(tmp_path: Path) -> None:
    """Whatever is added to a manifest, a label too, gives another id."""
    body = folders.body(tmp_path, {"a": ["one"]})
    first = load_manifest(folders.write(tmp_path, body)).id
    body["jobs"][0]["label"] = "another"
    second = load_manifest(folders.write(tmp_path, body)).id
    assert first != second
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert written["id"] == second
