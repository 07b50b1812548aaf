"""``lowrank``, from what it offers to an ONNX file, and what its fit is worth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
import torchvision
from torch import Tensor, nn

from tests import nets
from tests.pipeline import tiny
from trt_layermerge.backends.fake import FakeBackend
from trt_layermerge.blocks import LowRankChain
from trt_layermerge.blocks.factors import fold, spectral_error
from trt_layermerge.core.candidate import Candidate, finish, merged_spec
from trt_layermerge.core.graph import LayerGraph, load_graph
from trt_layermerge.core.jsonio import read_json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.tables import ImportanceTable, LatencyTable
from trt_layermerge.core.unit import Block, ConvUnit
from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.export.onnx import export_onnx
from trt_layermerge.importance.calibrate import CalibrateScorer
from trt_layermerge.importance.spectral import SpectralScorer
from trt_layermerge.kinds import Limits, kind_of, refusal
from trt_layermerge.kinds.lowrank import SCHEMES, LowRank, split
from trt_layermerge.merge import build_block, certify, collapse, relax, repair
from trt_layermerge.merge.leastsq import Moments
from trt_layermerge.merge.segments import record
from trt_layermerge.merge.surgery import block_ports
from trt_layermerge.session.settings import ImportanceSection, Settings
from trt_layermerge.tracing import trace, trace_network


def images(count: int = 2, seed: int = 0) -> Tensor:
    return nets.example(size=12, batch=count, seed=seed).double()


def offered(graph: LayerGraph, kind: LowRank | None = None) -> list[Candidate]:
    kind = kind or LowRank()
    found = [c for b in graph.blocks("full") for c in kind.candidates(graph, b, Limits())]
    assert all(refusal(graph, c) is None for c in found)
    return found


def of_unit(graph: LayerGraph, unit: int, scheme: int, groups: int, channels: int) -> Candidate:
    whole, block = merged_spec(graph, Block(unit, unit + 1), (unit,)), Block(unit, unit + 1)
    return finish(graph, block, "lowrank", (unit,), split(whole, SCHEMES[scheme], groups, channels))


def exported(network: nn.Module, x: Tensor, path: Path) -> Tensor:
    """Returns what ONNX Runtime answers to the images, in float32."""
    export_onnx(network.float(), x.float(), path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": x.float().numpy()})[0]).double()


def test_few_ranks_that_save_arithmetic_are_offered_of_dense_units() -> None:
    graph = trace(nets.basic_resnet(channels=32), nets.example())
    found: dict[int, list[tuple[int, tuple[int, int]]]] = {}
    for candidate in offered(graph):
        encoder, decoder = candidate.convs
        (unit,) = candidate.kept
        assert encoder.macs + decoder.macs < graph.conv_unit(unit).spec.macs
        assert candidate.activation == graph.units[unit].activation
        found.setdefault(unit, []).append((encoder.out_channels, encoder.kernel))
    # The stem (3>32) saves arithmetic up to rank 8.2, with a 1x1 up to 2.97.
    assert found[0] == [(8, (1, 3))]
    # 32>32: up to 48 and 28.8. 32>64 with stride 2: 48, and 26.4 where a 1x1 sees more.
    assert found[1] == [
        *((r, (1, 3)) for r in (8, 16, 24, 32)),
        *((r, (1, 1)) for r in (8, 16, 24)),
    ]
    assert [r for r, k in found[3] if k == (1, 3)] == [8, 16, 24, 32]
    assert [r for r, k in found[3] if k == (1, 1)] == [8, 16]
    mobile = trace(nets.mobile(channels=16), nets.example())
    for candidate in offered(mobile):
        spec = mobile.conv_unit(candidate.block.start).spec
        assert spec.groups == 1
        assert not (spec.pointwise and candidate.convs[1] == replace(spec, groups=1))


def test_it_is_used_where_it_is_named_alone() -> None:
    assert kind_of(of_unit(trace(nets.plain_chain(), images().float()), 1, 0, 1, 2)).rules == ()


@pytest.mark.parametrize("name", sorted(nets.FACTORIES))
def test_a_whole_network_of_low_rank_is_relaxed_repaired_collapsed_and_certified(
    name: str, tmp_path: Path
) -> None:
    """Every dense unit, under any scheme, in one to three groups where they divide its channels."""
    model = nets.FACTORIES[name]().double()
    graph = trace(model, images())
    chosen = []
    for unit in (u for u in graph.units if isinstance(u, ConvUnit) and u.spec.groups == 1):
        groups = next(g for g in (3, 2, 1)[unit.index % 3 :] if unit.spec.in_channels % g == 0)
        candidate = of_unit(graph, unit.index, unit.index % 4, groups, groups)
        assert refusal(graph, candidate) is None
        chosen.append(candidate)
    assert chosen
    relaxed = relax(model, graph, MergePlan.of(graph, chosen))
    assert all(isinstance(block, LowRankChain) for block in relaxed.blocks.values())
    repair(relaxed, model, [images(16, 1)])
    merged, x = collapse(relaxed), images(4, 2)
    certificate = certify(relaxed, merged, x)
    assert certificate.ok and certificate.max_rel_error <= 1e-10
    with torch.no_grad():
        wanted = relaxed(x)
    error = (exported(merged, x, tmp_path / "model.onnx") - wanted).abs().max()
    assert float(error / wanted.abs().max()) <= 1e-4  # float32


def test_what_several_units_and_their_shortcut_compose_to_is_split_too() -> None:
    """A 5x5 of two convolutions and an identity, in two groups; at full rank it is the merge."""
    model, x = nets.basic_resnet().double(), images(4)
    graph, block = trace(model, x[:1]), Block(1, 3)
    whole = merged_spec(graph, block, (1, 2))
    merge = finish(graph, block, "compose", (1, 2), (whole,))
    for scheme, groups, channels in [(0, 2, 4), (3, 1, 2), (0, 1, 6)]:
        convs = split(whole, SCHEMES[scheme], groups, channels)
        candidate = finish(graph, block, "lowrank", (1, 2), convs)
        assert refusal(graph, candidate) is None and whole.kernel == (5, 5)
        relaxed = relax(model, graph, MergePlan.of(graph, [candidate]))
        merged = collapse(relaxed)
        assert certify(relaxed, merged, x).max_rel_error <= 1e-10
        with torch.no_grad():
            composed = relax(model, graph, MergePlan.of(graph, [merge]))(x)
            error = float((merged(x) - composed).norm() / composed.norm())
        assert (error <= 1e-12) == (channels == 6)


def test_a_resnet18_goes_the_whole_way(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = torchvision.models.resnet18(num_classes=10).eval(), nets.example(size=48)
    graph = trace(model, x)
    last: dict[int, Candidate] = {c.block.start: c for c in offered(graph)}
    assert sorted(last) == list(range(len(graph.units)))
    plan = MergePlan.of(graph, [last[unit] for unit in range(8)])  # to 128 channels
    relaxed = relax(model, graph, plan)
    merged = collapse(relaxed)
    assert certify(relaxed, merged, x).ok
    with torch.no_grad():
        wanted = relaxed(x).double()
    error = (exported(merged, x, tmp_path / "model.onnx") - wanted).abs().max()
    assert float(error / wanted.abs().max()) <= 1e-4


@pytest.mark.parametrize("scheme", range(4))
def test_full_rank_is_the_unit_before_and_after_its_fit(scheme: int) -> None:
    model = nets.basic_resnet().double()
    traced, x = trace_network(model, images()), images(24, 1)
    for unit in (2, 3):  # a residual ends behind one; the other has a stride
        weight = model.get_submodule(traced.graph.conv_unit(unit).name).weight
        rank = min(fold(weight, SCHEMES[scheme], 2).shape[1:])
        candidate = of_unit(traced.graph, unit, scheme, 2, 2 * rank)
        block = build_block(traced, candidate)
        ports = block_ports(traced, candidate)
        with torch.no_grad():
            found = record(traced.module, x, [ports.source, ports.target])
            error = (block(found[ports.source]) - found[ports.target]).abs().max()
            assert float(error) <= 1e-12 * float(found[ports.target].abs().max())
        relaxed = relax(model, traced.graph, MergePlan.of(traced.graph, [candidate]))
        repair(relaxed, model, x.split(8), {candidate.key: "rank"})
        with torch.no_grad():
            assert torch.allclose(relaxed(x), model(x), atol=1e-4)  # the ridge, 1e-6


def errors(
    model: nn.Module, candidate: Candidate, methods: Iterable[str], x: Tensor
) -> dict[str, float]:
    """Returns how far each repair leaves the unit's values from the original ones, relative."""
    traced = trace_network(model, x[:1])
    ports = block_ports(traced, candidate)
    values = record(traced.module, x, [ports.source, ports.target])
    found = {}
    for method in methods:
        relaxed = relax(model, traced.graph, MergePlan.of(traced.graph, [candidate]))
        repair(relaxed, model, x.split(16), {candidate.key: method})
        (block,) = relaxed.blocks.values()
        wanted = values[ports.target]
        found[method] = float((block(values[ports.source]) - wanted).norm() / wanted.norm())
    return found


@pytest.mark.parametrize(("scheme", "groups"), [(0, 1), (0, 2), (1, 1), (2, 1), (3, 1), (3, 2)])
@torch.no_grad()
def test_the_fit_loses_less_than_singular_values_of_the_weights(scheme: int, groups: int) -> None:
    """Random weights have no low rank, but inputs behind a ReLU are correlated."""
    model, x = nets.basic_resnet(channels=8).double(), images(64, 1)
    candidate = of_unit(trace(model, x[:1]), 2, scheme, groups, 4)
    found = errors(model, candidate, ["none", "ls-variance", "rank"], x)
    assert found["rank"] < found["ls-variance"] < found["none"]
    assert found["rank"] < 0.8 * found["none"]


def test_it_is_scored_by_its_own_fits_and_by_what_it_starts_with() -> None:
    model, x = nets.basic_resnet(channels=8).double(), images(40, 1)
    graph = trace(model, x[:1])
    candidate = of_unit(graph, 1, 0, 1, 4)
    scores = {}
    for repairs in [("none",), ("ls-variance",), ("rank",), None]:
        scorer = CalibrateScorer(model, graph, x[:24], x[24:], repairs=repairs)
        scores[repairs] = scorer.entry(candidate)
        assert repairs is None or scores[repairs].repair == repairs[0]
    assert scores[None].repair in ("ls-variance", *LowRankChain.fits)
    assert scores[None].delta == max(entry.delta for entry in scores.values()) < 0


@pytest.fixture
def arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device where arithmetic alone costs, and ranks for networks of few channels."""
    costs = {**FakeBackend.__init__.__kwdefaults__, "overhead_ms": 0.0, "ms_per_mib": 0.0}
    monkeypatch.setattr(FakeBackend.__init__, "__kwdefaults__", {**costs, "ms_per_gmac": 100.0})
    monkeypatch.setattr(LowRank, "multiple", 2)


@pytest.mark.usefixtures("arithmetic")
def test_the_published_allocation_takes_the_least_largest_error(tmp_path: Path) -> None:
    """In a whole run: per unit the fastest rank within the least error that meets the budget."""
    asked = {
        "search.kinds": ["lowrank"],
        "search.speedup": 1.4,
        "importance.method": "spectral",
        "finetune.preset": "none",
    }
    summary, told = tiny.run(tmp_path / "runs", tiny.write_project(tmp_path), overrides=asked)
    folder = tmp_path / "runs" / "tiny"
    assert summary["speedup"] > 1.4 and summary["certificate_max_rel_error"] < 1e-4
    assert not any(label in ("racing", "scoring finalists") for label, _ in told.steps)
    assert "| lowrank |" in (folder / "report.md").read_text()
    importance = ImportanceTable.load(folder / "importance.jsonl")
    plan = MergePlan.load(folder / "plan.json")
    errors = [-importance[c].delta for c in plan.changed]
    assert plan.score == pytest.approx(-max(errors)) and 0 < max(errors) < 1
    points = read_json(folder / "frontier.json", "frontier")["points"]
    assert points == sorted(points) and points[-1][1] == 0.0  # nothing changed
    latency = LatencyTable.load(folder / "latency.jsonl")

    def cost(candidate: Candidate) -> float:
        return latency.cost_ms(candidate, "fp32", 1)

    graph = load_graph(folder / "graph.json")
    scored = [c for c in offered(graph) if c in importance]
    for original, chosen in zip(MergePlan.of(graph, []).candidates, plan.candidates, strict=True):
        same = [c for c in scored if c.block == chosen.block]
        within = [c for c in same if -importance[c].delta <= max(errors)]
        assert chosen in (original, *within)
        assert cost(chosen) == pytest.approx(min(cost(c) for c in (original, *within)))


def test_errors_of_weights_are_asked_of_kinds_that_tell_them() -> None:
    with pytest.raises(ValueError, match=r"what compose, fit, identity would lose.*\[lowrank\]"):
        Settings(importance=ImportanceSection(method="spectral"))
    model = nets.basic_resnet()
    graph = trace(model, images().float())
    candidate = of_unit(graph, 1, 0, 2, 2)
    entry = SpectralScorer(model, graph).entry(candidate)
    weight = model.get_submodule(graph.conv_unit(1).name).weight.detach()
    assert entry.delta == -spectral_error(weight, SCHEMES[0], 2, 1)


def test_ranks_of_a_unit_share_their_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nets.basic_resnet(channels=8).double(), images(40, 1)
    graph = trace(model, x[:1])
    first, second = (of_unit(graph, 2, 0, 1, rank) for rank in (2, 4))
    alone = CalibrateScorer(model, graph, x[:24], x[24:]).entry(second)
    gathered: list[int] = []
    add = Moments.add
    monkeypatch.setattr(
        Moments, "add", lambda self, *data: (gathered.append(self.size), add(self, *data))[1]
    )
    scorer = CalibrateScorer(model, graph, x[:24], x[24:])
    scorer.entry(first)
    once = len(gathered)
    assert once and gathered.count(72) == once // 2  # of the dense convolution, and a decoder
    assert scorer.entry(second) == alone and len(gathered) == once + once // 2


def test_what_is_no_split_is_refused() -> None:
    graph = trace(nets.basic_resnet(), images().float())
    good = of_unit(graph, 1, 0, 1, 2)
    assert refusal(graph, good) is None
    encoder, decoder = good.convs
    whole = merged_spec(graph, good.block, good.kept)
    both = replace(whole, out_channels=2), replace(whole, in_channels=2)
    for convs, reason in [
        ((replace(encoder, out_channels=3), decoder), "not fed"),
        (both, "no split of 6>6 k3x3"),
        ((whole,), "no encoder and decoder"),
        (of_unit(graph, 1, 0, 1, 7).convs, "more than full rank"),
    ]:
        bad = replace(good, convs=convs)
        assert reason in (refusal(graph, bad) or "")
        with pytest.raises(UnsupportedModelError, match="cannot be merged"):
            relax(nets.basic_resnet(), graph, MergePlan.of(graph, [bad]))
    assert "no encoder and decoder" in (refusal(graph, replace(good, kept=())) or "")


@torch.no_grad()
def test_the_start_is_the_paper_s() -> None:
    """The unit's own weights are split, its normalisation stays behind the decoder."""
    model = nets.basic_resnet().double()
    traced = trace_network(model, images())
    candidate = of_unit(traced.graph, 1, 0, 1, 3)
    block = build_block(traced, candidate)
    assert isinstance(block, LowRankChain) and block.started
    encoder, decoder = block.bodies()
    unit = traced.graph.conv_unit(1)
    weight = model.get_submodule(unit.name).weight.detach()
    left = weight.flatten(1) - decoder.conv.weight.flatten(1) @ encoder.conv.weight.flatten(1)
    error = torch.linalg.matrix_norm(left, 2) / torch.linalg.matrix_norm(weight.flatten(1), 2)
    assert float(error) == pytest.approx(spectral_error(weight, SCHEMES[0], 1, 3), rel=1e-9)
    norm = model.get_submodule(unit.bn or "")
    assert decoder.norm is not None and torch.equal(decoder.norm.weight, norm.weight)
