"""The whole way on live objects: networks, loaders and loops that are not ours."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import trt_layermerge as tlm
from tests import nets
from tests.pipeline.tiny import PREPROCESS
from trt_layermerge.core.jsonio import read_json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.errors import InfeasibleBudgetError, UnsupportedModelError, UsageError
from trt_layermerge.models.networks import load_network
from trt_layermerge.search.lazy import used_by_frontiers

ROOT = Path(__file__).parents[2]
FEW = {
    "measure": {"rounds": 3, "networks": 4},
    "search": {
        "limits": {"max_units": 3, "max_kernel": 5, "kernels": [1, 3]},
        "finalists": 2,
        "loops": 2,
        "samples": 3,
    },
    "importance": {"fit_images": 64, "score_images": 64},
    "build": {"engine": "none"},
}
SHORT = {"epochs": 2, "batch": 32}


@pytest.fixture
def model(finished: Path) -> nn.Module:
    return load_network(f"{finished / 'nets.py'}:tiny", str(finished / "tiny.safetensors"))


@pytest.fixture
def loaders(finished: Path) -> dict[str, DataLoader[Any]]:
    """Loaders as a user has them, who knows nothing of this project."""
    found = {}
    for split in ("train", "val", "test"):
        data = np.load(finished / f"{split}.npz")
        images = torch.from_numpy(PREPROCESS(data["images"]))
        pairs = TensorDataset(images, torch.from_numpy(data["labels"]))
        found[split] = DataLoader(pairs, 32, shuffle=split == "train")
    return found


def accuracy(network: nn.Module, loader: DataLoader[Any]) -> float:
    with torch.no_grad():
        hits = [(network(images).argmax(1) == labels) for images, labels in loader]
    return float(torch.cat(hits).double().mean())


def convs(network: nn.Module) -> int:
    return sum(isinstance(m, nn.Conv2d) for m in network.modules())


def test_one_call_goes_the_whole_way(
    model: nn.Module, loaders: dict[str, DataLoader[Any]], tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    told: list[tuple[str, int, int]] = []
    result = tlm.compress(
        model,
        loaders["train"],
        torch.zeros(1, 3, 16, 16),
        speedup=1.3,
        val_loader=loaders["val"],
        test_loader=loaders["test"],
        backend="fake",
        finetune=SHORT,
        settings={**FEW, "device": "cpu"},
        progress=lambda *step: told.append(step),
    )
    assert result.speedup and result.latency_ms and result.original_ms
    assert result.speedup >= 1.3 and result.latency_ms < result.original_ms
    assert result.plan.changed and result.certificate.ok
    assert convs(result.model) == result.plan.conv_count < convs(model)
    assert result.accuracy == accuracy(result.model, loaders["test"])
    assert result.original_accuracy == accuracy(model, loaders["test"])
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
    stages = {stage for stage, _, _ in told}
    assert {"measuring", "scoring", "fine-tuning", "racing"} <= stages
    assert all(done <= total for _, done, total in told)
    assert result.export(tmp_path / "fast.onnx").stat().st_size > 1000
    saved = result.save(tmp_path / "kept")
    assert {"plan.json", "merged.safetensors", "model.onnx"} <= {p.name for p in saved.iterdir()}
    assert read_json(saved / "bench.json", "bench")["speedup"] == result.speedup


def test_a_loop_of_ones_own_trains_a_timm_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_050", num_classes=4).eval()
    images = torch.randn(96, 3, 64, 64)
    batches = [images[i : i + 32] for i in range(0, 96, 32)]  # no labels, no DataLoader
    session = tlm.Session(model, torch.zeros(1, 3, 64, 64), backend="fake", settings=FEW)
    session.measure()
    session.score(batches)
    # Random weights are not worth a race, which would take the longest.
    session.settings = session.settings.model_copy(
        update={"search": session.settings.search.model_copy(update={"race_steps": 0})}
    )
    plan = session.search(speedup=1.2)
    network = session.relax()
    session.repair()
    network.train()
    optimiser = torch.optim.SGD(network.parameters(), 1e-3)
    with torch.no_grad():
        targets = [model(batch) for batch in batches]
    losses = []
    for _ in range(2):
        for batch, target in zip(batches, targets, strict=True):
            loss = nn.functional.mse_loss(network(batch), target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
    merged = session.merge()
    assert session.certificate.ok and plan.conv_count < convs(model)
    network.eval()
    with torch.no_grad():
        assert torch.allclose(merged(batches[0]), network(batches[0]), rtol=1e-3, atol=1e-4)
    report = session.export(tmp_path / "own.onnx")["model.onnx"]
    assert report.images_compared == 16 and report.max_rel_error < 1e-4
    assert session.bench()["speedup"] > 1.1
    found, _ = session.verify(batches)
    assert found["accuracy"]["merged"] is None and found["images"] == 96
    assert {c["name"] for c in found["comparisons"]} == {"original.onnx", "model.onnx"}


def test_an_interrupted_session_continues_from_its_folder(
    model: nn.Module, loaders: dict[str, DataLoader[Any]], tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "scoring" and done == 5:
            raise Stop

    images = [batch for batch, _ in DataLoader(loaders["train"].dataset, 32)]

    def session(progress: Any = None) -> tlm.Session:
        example = torch.zeros(1, 3, 16, 16)
        return tlm.Session(
            model, example, backend="fake", settings=FEW, folder=tmp_path, progress=progress
        )

    begun = session(stop)
    begun.measure()
    with pytest.raises(Stop):
        begun.score(images)
    counts: list[int] = []
    again = session(lambda stage, done, _: counts.append(done) if stage == "scoring" else None)
    again.measure()
    again.score(images)
    assert counts[0] == 5
    # The scores of another network are set aside, not mixed with these.
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    other = session()
    other.measure()
    other.score(images)
    assert len(list(tmp_path.glob("importance.*.jsonl"))) == 1


def test_a_metric_takes_the_place_of_accuracy(
    model: nn.Module, loaders: dict[str, DataLoader[Any]]
) -> None:
    def minus_error(network: nn.Module) -> float:
        with torch.no_grad():
            errors = [(network(x) - model(x)).square().mean() for x, _ in loaders["val"]]
        return -float(torch.stack(errors).mean())

    result = tlm.compress(
        model,
        [images for images, _ in loaders["train"]],
        torch.zeros(1, 3, 16, 16),
        speedup=1.3,
        metric=minus_error,
        backend="fake",
        finetune=SHORT,
        settings=FEW,
    )
    assert result.original_accuracy == 0.0
    assert result.accuracy == pytest.approx(minus_error(result.model)) and result.accuracy < 0


def test_what_is_missing_is_told_with_the_verb_that_makes_it(model: nn.Module) -> None:
    session = tlm.Session(model, torch.zeros(1, 3, 16, 16), backend="fake", settings=FEW)
    for attribute, verb in (("latencies", "measure"), ("plan", "search"), ("merged", "merge")):
        with pytest.raises(UsageError, match=rf"call session\.{verb}\(\) first"):
            getattr(session, attribute)
    with pytest.raises(UsageError, match="pass a loader"):
        session.score()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"search": {"spedup": 2}}, "search.spedup"),
        ({"measure": {"precision": "fp8"}}, "fp8 needs a GPU"),
        ({"serch": {}}, "serch"),
    ],
)
def test_settings_that_cannot_be_used_are_named(
    model: nn.Module, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        tlm.Session(model, torch.zeros(1, 3, 16, 16), settings=settings)


@pytest.mark.parametrize(
    "goal",
    [{"speedup": 1.0}, {"speedup": -2}, {"budget_ms": 0.0}, {"speedup": 0.5, "budget_ms": 1.0}],
)
def test_a_goal_that_is_none_is_refused(model: nn.Module, goal: dict[str, float]) -> None:
    session = tlm.Session(model, torch.zeros(1, 3, 16, 16), backend="fake", settings=FEW)
    with pytest.raises(UsageError, match="name no budget"):
        session.search([torch.zeros(4, 3, 16, 16)], **goal)


def test_a_budget_that_nothing_meets_says_by_how_much(
    model: nn.Module, loaders: dict[str, DataLoader[Any]]
) -> None:
    session = tlm.Session(model, torch.zeros(1, 3, 16, 16), backend="fake", settings=FEW)
    session.measure()
    session.score(loaders["train"])
    with pytest.raises(InfeasibleBudgetError, match="% too slow"):
        session.search(speedup=50)
    assert (session.folder / "frontier.json").is_file()


def test_several_speedups_have_a_plan_each_from_the_same_tables() -> None:
    notes: list[str] = []
    search = {**FEW["search"], "samples": 0, "race_steps": 0}
    session = tlm.Session(
        nets.basic_resnet().eval(),
        torch.zeros(1, 3, 16, 16),
        backend="fake",
        settings={**FEW, "search": search},
        note=notes.append,
    )
    session.measure()
    tables = session.score([torch.randn(16, 3, 16, 16)] * 2), session.latencies
    plans = session.search_each([1.1, 50, 1.3, 1.1])
    assert list(plans) == [1.1, 1.3] and (session.importance, session.latencies) == tables
    assert all(plan.notes["measured_speedup"] >= speedup for speedup, plan in plans.items())
    assert any(note.startswith("50x: ") and "% too slow" in note for note in notes)
    assert session.plan is plans[1.3] and session.plan.candidates != plans[1.1].candidates
    session.use(plans[1.1])
    session.relax()
    assert convs(session.merge()) == plans[1.1].conv_count
    with pytest.raises(InfeasibleBudgetError, match="% too slow"):
        session.search_each([40, 50])


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "gives no images"),
        ([np.zeros((4, 3, 16, 16))], "float tensors .N, C, H, W."),
        ([torch.zeros(3, 16, 16)], "float tensors .N, C, H, W."),
        ([torch.zeros(1, 3, 16, 16)], "a single training image"),
    ],
)
def test_a_loader_that_gives_no_images_is_refused(
    model: nn.Module, batches: list[Any], words: str
) -> None:
    session = tlm.Session(model, torch.zeros(1, 3, 16, 16), backend="fake", settings=FEW)
    session.measure()
    with pytest.raises(UsageError, match=words):
        session.score(batches)


def test_a_plan_of_ones_own_takes_the_place_of_a_search(model: nn.Module, images: Tensor) -> None:
    session = tlm.Session(model, torch.zeros(1, 3, 16, 16), backend="fake", settings=FEW)
    gone = next(c for c in session.candidates if c.kind == "identity")
    session.use(tlm.MergePlan.of(session.graph, [gone]))
    session.relax()
    merged = session.merge(images)
    assert session.certificate.ok and convs(merged) < convs(model)
    with pytest.raises(UsageError, match="export the networks first"):
        session.quantize([images])


def test_random_weights_are_told_even_where_nobody_listens(
    model: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    example = torch.zeros(1, 3, 16, 16)
    untrained = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    session = tlm.Session(untrained, example, backend="fake")
    assert "random weights" in caplog.text and len(session.notes) == 1
    heard: list[str] = []
    caplog.clear()
    tlm.Session(untrained, example, backend="fake", note=heard.append)
    assert heard == list(session.notes) and not caplog.text
    assert tlm.Session(model, example, backend="fake").notes == ()
    assert not caplog.text


def test_a_precision_that_is_impossible_is_noted_by_every_verb() -> None:
    """All weights of a layer are zero in half precision; single precision is judged as ever."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    nn.init.uniform_(second.weight, 1e-9, 2e-9)
    network = nn.Sequential(first, nn.ReLU(), second, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    settings = {"build": {"engine": "auto", "precisions": ["fp32", "fp16"]}}
    example = torch.zeros(1, 3, 8, 8)
    session = tlm.Session(network, example, backend="fake", settings=settings)
    session.use(tlm.MergePlan.of(session.graph, []))
    session.relax()
    session.merge(torch.randn(2, 3, 8, 8))
    session.export()
    bench = session.bench()
    assert [pair["precision"] for pair in bench["precisions"]] == ["fp32"]
    assert "is zero in float16" in {u["precision"]: u["reason"] for u in bench["untimed"]}["fp16"]
    body, _ = session.verify([torch.randn(4, 3, 8, 8)])
    reasons = {c["name"]: c["reason"] for c in body["comparisons"]}
    assert reasons["original.onnx"] is None and reasons["model.onnx"] is None
    assert body["failed_gate"] is None
    (said,) = (s for s in body["unverified"] if "fp16" in s)
    assert "original.fp16.onnx, model.fp16.onnx were not run" in said and "zero in float16" in said


@pytest.mark.parametrize("most", [None, 4])
def test_a_network_with_tfs_padding_is_verified_as_exported(most: int | None) -> None:
    """For one batch, and for any up to four: verify takes what export made, and so do bundles."""
    torch.manual_seed(0)
    network = timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=5)
    settings = {"build": {"engine": "none", "max_batch": most}}
    example = torch.zeros(1, 3, 32, 32)
    session = tlm.Session(network, example, backend="fake", precision="fp16", settings=settings)
    gone = next(c for c in session.candidates if c.kind == "identity")
    session.use(tlm.MergePlan.of(session.graph, [gone]))
    session.relax()
    session.merge()
    reports = session.export(check=torch.randn(3, 3, 32, 32))
    for report in reports.values():
        assert set(report.nodes) == {"Conv", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm"}
        assert report.input_shape == (1 if most is None else "batch", 3, 32, 32)
    session.build()
    body, _ = session.verify(torch.randn(6, 3, 32, 32).split(3))
    assert body["notes"] == list(session.notes) and "random weights" in body["notes"][0]
    found = [c["max_rel"] for c in body["comparisons"]]
    assert body["failed_gate"] is None and len(found) == 4 and None not in found
    assert max(found[:2]) < 1e-5


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 16, 16)


def test_the_notebook_example_runs_as_it_stands(tmp_path: Path) -> None:
    """With fewer epochs and a faster search: its lines are those of the file."""
    text = (ROOT / "examples" / "notebook.py").read_text()
    last = "test_loader=test\n"
    assert text.count(last) == 1 and len(text.strip().splitlines()) <= 35
    quick = f'test_loader=test, finetune={{"epochs": 1}}, settings={FEW!r}\n'
    script = text.replace(last, quick)
    (tmp_path / "glyphs").symlink_to(ROOT / "examples" / "glyphs")
    (tmp_path / "notebook.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "notebook.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{ROOT}:{tmp_path / 'glyphs'}", "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "x: 9" in done.stdout and "result.certificate.ok=True" in done.stdout
    assert (tmp_path / "resnet20-fast.onnx").is_file()


class Pooled(nn.Module):
    """A classifier with or without one convolution, which cannot merge with anything."""

    def __init__(self, convolution: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3) if convolution else nn.ReLU()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize("convolution", [False, True])
def test_a_network_where_nothing_merges_ends_at_measuring(
    tmp_path: Path, convolution: bool
) -> None:
    told: list[str] = []
    session = tlm.Session(
        Pooled(convolution), torch.zeros(1, 3, 8, 8), folder=tmp_path, note=told.append
    )
    session.inspect()
    assert any("nothing in this network can merge" in note for note in told)
    assert {"graph.json", "candidates.jsonl"} <= {path.name for path in tmp_path.iterdir()}
    with pytest.raises(UnsupportedModelError, match="nothing in this network can merge"):
        session.measure()


def test_the_refusal_lists_the_barriers(tmp_path: Path) -> None:
    pools = [layer for _ in range(2) for layer in (nn.Conv2d(3, 3, 3, 2), nn.MaxPool2d(2, 1))]
    session = tlm.Session(nn.Sequential(*pools), torch.zeros(1, 3, 32, 32), folder=tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"0 is followed by pooling"):
        session.measure()


def test_a_training_without_labels_that_does_harm_is_told(
    model: nn.Module, loaders: dict[str, DataLoader[Any]]
) -> None:
    """By answers on images to judge by; a rate that is far too high, and one that does nothing."""
    images = {name: [batch for batch, _ in loader] for name, loader in loaders.items()}
    told: list[str] = []
    for lr in (1.0, 1e-9):
        told.clear()
        session = tlm.Session(
            model, torch.zeros(1, 3, 16, 16), backend="fake", settings=FEW, note=told.append
        )
        offered = next(c for c in session.candidates if c.kind == "identity")
        session.use(MergePlan.of(session.graph, [offered]))
        session.relax()
        session.repair(images["train"])
        session.train(val=images["val"], epochs=1, batch=32, lr=lr, bn="freeze")
        assert any("further from the original's" in note for note in told) == (lr == 1.0)


def test_a_network_that_is_too_large_is_looked_at_first(
    model: nn.Module,
    loaders: dict[str, DataLoader[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the frontier uses is scored exactly, the rest once; such scores are never mixed."""
    settings = {**FEW, "search": {}}
    session = tlm.Session(
        model, torch.zeros(1, 3, 16, 16), backend="fake", folder=tmp_path, settings=settings
    )
    session.measure()
    whole = session.score(loaders["train"])
    assert all(entry.images is None for entry in whole.entries.values())
    monkeypatch.setitem(import_module("trt_layermerge.importance.amounts").WORK, "normal", 1.0)
    found = session.score(loaders["train"])
    looked = [entry for entry in found.entries.values() if entry.images is not None]
    assert 0 < len(looked) < len(found.entries) == len(whole.entries)
    assert {entry.images for entry in looked} == {4} and found.notes["amounts"]["score"] == 32
    used = used_by_frontiers(session.problem, session.latencies.table, found)
    assert used and all(found[candidate].images is None for candidate in used)
    rows = (tmp_path / "importance.jsonl").read_text().splitlines()
    assert len(rows) == 1 + len(found.entries)  # nothing twice
    assert len(list(tmp_path.glob("importance.*.jsonl"))) == 1  # the whole table, set aside
    assert session.score(loaders["train"]).entries == found.entries
