"""Every reader of a file that may be damaged, with a sound file for it to begin with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.agent import folders
from tests.deploy import bundles
from tests.pipeline import tiny
from trt_layermerge.core.graph import load_graph
from trt_layermerge.core.jsonio import regular, write_bytes, write_json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.preprocess import Preprocess
from trt_layermerge.core.tables import ImportanceTable, LatencyTable
from trt_layermerge.data.sources import read_npz
from trt_layermerge.deploy.bundle.folder import read_bundle, write_bundle
from trt_layermerge.deploy.bundle.render import render
from trt_layermerge.deploy.sidecar import KIND, check_engine, sidecar_path
from trt_layermerge.errors import UsageError
from trt_layermerge.finetune.state import load_state
from trt_layermerge.measure.agent.jobs import load_manifest
from trt_layermerge.measure.agent.run import run_jobs
from trt_layermerge.measure.jobs import read_measurements
from trt_layermerge.measure.store import LatencyStore
from trt_layermerge.models.weights import read_weights
from trt_layermerge.onnx_reader import load_onnx
from trt_layermerge.pipeline.recipe import load_recipe
from trt_layermerge.quantize.preset import load_preset
from trt_layermerge.session.built import built_engines
from trt_layermerge.session.candidates import load_candidates
from trt_layermerge.session.latency import Latencies

SHAPE = (1, 3, 16, 16)


@dataclass(frozen=True)
class Door:
    """A reader.

    Attributes:
        name: What it reads.
        path: The file that is damaged.
        read: Reads it, or whatever it is a part of, and returns what that came to.
        sealed: Whether the file carries a hash, so that no change may be taken for another value.
    """

    name: str
    path: Path
    read: Callable[[Path], Any]
    sealed: bool = False


def doors(work: Path) -> list[Door]:
    """Returns all of them; their files are made in a folder where they are missing."""
    run = work / "runs" / "tiny"
    if not (run / "summary.json").exists():
        tiny.run(work / "runs", tiny.write_project(work))
    made = _made(work / "made", work)
    return [
        Door("graph", run / "graph.json", load_graph),
        Door("candidates", run / "candidates.jsonl", lambda path: load_candidates(path.parent)),
        Door("latencies", run / "latency.jsonl", LatencyTable.load),
        Door("networks", run / "networks.jsonl", lambda path: Latencies.load(path.parent)),
        Door("scores", run / "importance.jsonl", _scores(run / "importance.jsonl"), sealed=True),
        Door("plan", run / "plan.json", MergePlan.load),
        Door("build", run / "build.json", lambda path: built_engines(path.parent)),
        Door("remembered recipe", run / "recipe.yaml", _remembered, sealed=True),
        Door("recipe", work / "tiny.yaml", lambda path: load_recipe(path, {})),
        Door("training", run / "finetune.state.safetensors", _training, sealed=True),
        Door("store", run / "latency.sqlite", _stored, sealed=True),
        Door("safetensors", work / "tiny.safetensors", _weights),
        Door("images", work / "train.npz", _images, sealed=True),
        Door("checkpoint", made / "tiny.pt", _weights),
        Door("old checkpoint", made / "old.pt", _weights),
        Door("onnx", made / "net.onnx", _network),
        Door("preset", made / "preset.yaml", lambda path: load_preset(path, {})),
        Door("jobs", made / "jobs" / "manifest.json", _jobs, sealed=True),
        Door("answers", made / "jobs" / "results.jsonl", read_measurements),
        Door("bundle", made / "bundle" / "manifest.json", _bundle, sealed=True),
        Door("engine", made / "model.plan", lambda path: check_engine(path), sealed=True),
        Door("sidecar", sidecar_path(made / "model.plan"), _engine),
    ]


def _made(folder: Path, work: Path) -> Path:
    """Makes the files that no run of the tiny project leaves; returns their folder."""
    if (folder / "done").exists():
        return folder
    folder.mkdir(exist_ok=True)
    state = read_weights(work / "tiny.safetensors")
    torch.save(state, folder / "tiny.pt")
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
    (folder / "net.onnx").write_bytes(_onnx().SerializeToString())
    (folder / "preset.yaml").write_text("method: entropy\nimages: 64\nseed: 3\n")
    run_jobs(folders.singles(folder / "jobs", 3, sentinel=None))
    given = bundles.with_plan(bundles.contents())
    write_bundle(folder / "bundle", render(given, "plain"))
    assert given.engine is not None
    write_bytes(folder / "model.plan", given.engine.plan)
    write_json(sidecar_path(folder / "model.plan"), KIND, given.engine.sidecar.to_json())
    (folder / "done").touch()
    return folder


def _onnx() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {"v": (8, 3, 3, 3), "w": (4, 8, 3, 3)}
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["a"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["c"], name="second", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["o"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, (1, 4))],
        [
            numpy_helper.from_array(rng.normal(size=size).astype(np.float32), name)
            for name, size in weights.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _tensors(state: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} {value.layout}".encode())
        if value.layout == torch.strided and not value.is_meta:
            digest.update(repr(value.tolist()).encode())
    return digest.hexdigest()


def _weights(path: Path) -> str:
    return _tensors(read_weights(path))


def _network(path: Path) -> str:
    return _tensors(dict(load_onnx(path, SHAPE).state_dict()))


def _remembered(path: Path) -> Any:
    return load_recipe(path, {}, remembered=True)


def _training(path: Path) -> Any:
    run = _run_of(path)
    state = load_state(path, run)
    if state is None and not path.exists():
        raise UsageError("there is none, and the training begins anew")
    return None if state is None else (_tensors(state.model), state.history)


def _run_of(path: Path) -> str:
    """Returns what a state says that it is of, so that damage elsewhere is what shows."""
    try:
        with regular(path).open("rb") as file:
            head = file.read(1 << 20)
        size = int.from_bytes(head[:8], "little")
        return str(json.loads(head[8 : 8 + size])["__metadata__"]["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _scores(path: Path) -> Callable[[Path], Any]:
    """Returns what tells the wrong rows: those that are missing are scored again."""
    sound = ImportanceTable.load(path).entries

    def wrong(path: Path) -> list[str]:
        found = ImportanceTable.load(path).entries
        return [str(key) for key, entry in found.items() if entry != sound.get(key)]

    return wrong


def _stored(path: Path) -> Any:
    table = LatencyTable.load(path.parent / "latency_bare.jsonl")
    with LatencyStore(path, table.device) as store:
        found = {key: store.get(*key) for key in table.entries}
    # What is missing is measured again; what is there must be what was measured.
    return [str(k) for k, value in found.items() if value not in (None, table.entries[k])]


def _images(path: Path) -> Any:
    data = read_npz(path, Preprocess())
    return hashlib.sha256(data.stored.numpy().tobytes()).hexdigest(), str(data.labels)


def _jobs(path: Path) -> Any:
    return load_manifest(path.parent)


def _bundle(path: Path) -> str:
    target, contents = read_bundle(path.parent)
    return f"{target} {contents.name} {contents.accuracy} {contents.preprocess} {contents.build}"


def _engine(path: Path) -> Any:
    return check_engine(path.with_suffix(".plan"))
