"""``narrow``: the algebra by brute force, the rest against the untouched network."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from tests import nets
from tests.merge.repairing import repair_block
from tests.pipeline import tiny
from trt_layermerge.backends.fake import FakeBackend
from trt_layermerge.blocks.elimination import eliminate
from trt_layermerge.core.candidate import Candidate, finish
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.unit import Block
from trt_layermerge.errors import UsageError
from trt_layermerge.export.onnx import export_onnx
from trt_layermerge.importance.calibrate import CalibrateScorer
from trt_layermerge.kinds import enumerate_candidates, kinds_of, refusal
from trt_layermerge.merge import build_block, certify, collapse, relax, repair
from trt_layermerge.merge.segments import record
from trt_layermerge.merge.surgery import block_ports
from trt_layermerge.report.chain import chain_picture, statuses, surviving_residuals
from trt_layermerge.report.data import known_looks
from trt_layermerge.report.palette import RED
from trt_layermerge.session.settings import SearchSection
from trt_layermerge.tracing import TracedNetwork, trace, trace_network


class Bottleneck(nn.Module):
    """1x1, strided 3x3, 1x1, beside a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*nets.conv_bn(3, 8, 3), nn.ReLU())
        self.body = nn.Sequential(
            *nets.conv_bn(8, 16, 1),
            nn.ReLU(),
            *nets.conv_bn(16, 24, 3, 2),
            nn.SiLU(),
            *nets.conv_bn(24, 12, 1),
        )
        self.shortcut = nn.Sequential(*nets.conv_bn(8, 12, 1, 2))
        self.head = nets.Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.relu(self.body(x) + self.shortcut(x)))


def network(name: str) -> nn.Module:
    made = {
        "basic": lambda: nets.basic_resnet(channels=16),
        "bottleneck": lambda: nets.randomise(Bottleneck()),
        "inverted": lambda: nets.mobile(channels=8),
        "plain": lambda: nets.plain_chain(channels=16),
    }
    return made[name]().double()


def images(count: int, seed: int = 0) -> Tensor:
    return nets.example(size=10, batch=count, seed=seed).double()


def offered(graph: LayerGraph) -> list[Candidate]:
    found = [c for c in enumerate_candidates(graph, kinds=["narrow"]) if not c.original]
    assert found and all(c.kind == "narrow" and refusal(graph, c) is None for c in found)
    return found


def apart(candidates: list[Candidate]) -> list[Candidate]:
    """Returns candidates that do not overlap, the longest first."""
    chosen: list[Candidate] = []
    for c in sorted(candidates, key=lambda c: (-len(c.block), c.convs[0].out_channels)):
        if all(c.block.end <= o.block.start or o.block.end <= c.block.start for o in chosen):
            chosen.append(c)
    return chosen


def at_full_width(graph: LayerGraph, block: Block) -> Candidate:
    units = [graph.conv_unit(i) for i in range(block.start, block.end)]
    convs = tuple(replace(u.spec.bare(), activation=u.activation) for u in units)
    return finish(graph, block, "narrow", (), convs, intact=True)


def values(traced: TracedNetwork, candidate: Candidate, x: Tensor) -> tuple[Tensor, Tensor]:
    ports = block_ports(traced, candidate)
    found = record(traced.module, x, [ports.source, ports.target])
    return found[ports.source], found[ports.target]


def squared_error(hidden: Tensor, wanted: Tensor, kept: Tensor, taps: int) -> float:
    """Returns what the best map from some channels leaves of the wanted values."""
    seen = hidden.reshape(len(hidden), -1, taps)[:, kept].flatten(1)
    fitted = seen @ torch.linalg.lstsq(seen, wanted).solution
    return float((wanted - fitted).square().sum())


@pytest.mark.parametrize("taps", [1, 3])
def test_each_channel_that_goes_is_the_one_that_is_missed_least(taps: int) -> None:
    generator = torch.Generator().manual_seed(taps)
    draw = {"generator": generator, "dtype": torch.float64}
    mix = torch.randn(6 * taps, 6 * taps, **draw)
    hidden = torch.randn(400, 6 * taps, **draw) @ mix  # correlated
    wanted = hidden @ torch.randn(6 * taps, 3, **draw) + torch.randn(400, 3, **draw)
    gram, cross = hidden.T @ hidden, hidden.T @ wanted
    left = torch.arange(6)
    for keep in (5, 4, 3, 2):
        sets = [torch.tensor(kept) for kept in combinations(left.tolist(), keep)]
        left = min(sets, key=lambda kept: squared_error(hidden, wanted, kept, taps))
        assert torch.equal(eliminate(gram, cross, keep, taps), left)


def test_of_two_channels_that_say_the_same_one_stays() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(200, 30, generator=generator, dtype=torch.float64)
    hidden[:, 15:] = hidden[:, :15]
    wanted = hidden[:, :15] @ torch.randn(15, 40, generator=generator, dtype=torch.float64)
    kept = eliminate(hidden.T @ hidden, hidden.T @ wanted, 15)
    assert sorted((kept % 15).tolist()) == list(range(15))
    assert squared_error(hidden, wanted, kept, 1) < 1e-12 * float(wanted.square().sum())


@pytest.mark.parametrize("name", ["basic", "bottleneck", "inverted", "plain"])
def test_at_full_width_it_is_the_original_before_and_after_its_fit(name: str) -> None:
    traced = trace_network(network(name), images(1))
    for block in {c.block for c in offered(traced.graph)}:
        candidate = at_full_width(traced.graph, block)
        made = build_block(traced, candidate)
        inputs, wanted = values(traced, candidate, images(30))
        for method in ("none", "channels"):
            repair_block(made, inputs, wanted, method)
            with torch.no_grad():
                error = (made(inputs) - wanted).abs().max() / wanted.abs().max()
            assert float(error) <= 1e-10


def test_what_is_offered() -> None:
    def widths(name: str) -> dict[tuple[int, int], list[tuple[int, ...]]]:
        found: dict[tuple[int, int], list[tuple[int, ...]]] = {}
        for c in offered(trace(network(name), images(1))):
            inner = tuple(spec.out_channels for spec in c.convs[:-1])
            found.setdefault((c.block.start, c.block.end), []).append(inner)
        return found

    # stem; two units beside an identity, two beside a projection, ...: never across an addition
    assert widths("basic")[1, 3] == [(8,)]
    assert all(end - start == 2 and start % 2 for start, end in widths("basic"))
    bottleneck = widths("bottleneck")
    assert bottleneck[1, 4] == [(16, 16), (8, 16), (8, 8)]
    assert bottleneck[1, 3] == [(8,)] and bottleneck[2, 4] == [(16,), (8,)]
    graph = trace(network("inverted"), images(1))
    chained = [c for c in offered(graph) if len(c.block) == 3]
    assert chained and all(c.convs[1].depthwise for c in chained)
    assert not any(c.convs[end].groups > 1 for c in offered(graph) for end in (0, -1))


def test_shortcut_addition_and_activation_stay() -> None:
    graph = trace(network("bottleneck"), images(1))
    (candidate,) = (
        c
        for c in offered(graph)
        if c.key[:2] == (1, 4) and c.convs[1].groups == 1 and c.convs[1].out_channels == 8
    )
    assert candidate.convs[-1].residual and candidate.activation == "relu"
    assert [spec.activation for spec in candidate.convs] == ["relu", "silu", "relu"]
    assert candidate.extras == graph.residuals[0].projections
    plan = MergePlan.of(graph, [candidate])
    before = MergePlan.of(graph, [])
    assert (plan.conv_count, plan.activation_count) == (before.conv_count, before.activation_count)
    assert surviving_residuals(graph, plan) == graph.residuals
    looks = known_looks()
    found = statuses(plan, looks)
    assert [s.activation for s in found] == [u.activation is not None for u in graph.units]
    assert {s.look for s in found[1:4]} == {looks["narrow"]}
    before_and_after = chain_picture(graph, plan, looks)
    assert "24→12" in before_and_after and "8→12" in before_and_after
    assert "narrowed" in before_and_after
    assert "activation removed" in before_and_after  # in the legend, and nowhere is one
    assert before_and_after.count(f'stroke="{RED}"') == chain_picture(graph, before, looks).count(
        f'stroke="{RED}"'
    )


@pytest.mark.parametrize("name", ["basic", "bottleneck", "inverted", "plain"])
def test_scored_repaired_merged_certified_and_exported(name: str, tmp_path: Path) -> None:
    model, x = network(name), images(40, 1)
    graph = trace(model, x[:1])
    chosen = apart(offered(graph))
    scorer = CalibrateScorer(model, graph, x, images(16, 2), batch=8)
    entry = scorer.entry(chosen[0])
    assert entry.repair in ("none", "channels") and -10 < entry.delta <= 0
    plan = MergePlan.of(graph, chosen)
    relaxed = relax(model, graph, plan)
    with torch.no_grad():
        wanted, start = model(x), relaxed(x)
        repair(relaxed, model, x.split(10))
        error = [float((y - wanted).square().mean()) for y in (start, relaxed(x))]
    assert error[1] < 0.5 * error[0]  # least squares on data, not the heaviest weights
    merged = collapse(relaxed)
    certificate = certify(relaxed, merged, x[:8])
    assert certificate.ok and certificate.max_rel_error <= 1e-10
    convs = [m for m in merged.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert sum(c.weight.numel() for c in convs) < sum(
        m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d)
    )

    path = tmp_path / "model.onnx"
    export_onnx(merged.float(), x[:2].float(), path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": x[:2].float().numpy()})
    with torch.no_grad():
        expected = relaxed(x[:2])
    difference = (torch.from_numpy(found).double() - expected).abs().max()
    assert float(difference / expected.abs().max()) <= 1e-5  # float32


def test_channels_are_chosen_for_the_data() -> None:
    """The heaviest channel is dead on the images: the start keeps it, the fit does not."""
    model = network("plain")
    traced = trace_network(model, images(1))
    candidate = next(c for c in offered(traced.graph) if c.block.start == 0)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        norms[0].bias[0] = -1e6  # behind it a ReLU
        convs[0].weight[0] *= 50
        convs[1].weight[:, 0] *= 50
    traced = trace_network(model, images(1))
    made = build_block(traced, candidate)
    inputs, wanted = values(traced, candidate, images(30))

    def dead() -> bool:
        return bool((made.bodies()[0].norm.bias < -1e5).any())

    assert dead()
    repair_block(made, inputs, wanted, "channels")
    assert not dead()


def test_kinds_are_named_in_the_settings() -> None:
    usual = SearchSection().kinds
    assert usual == ("compose", "fit", "identity")
    assert SearchSection(kinds=["narrow", "compose"]).kinds == ("compose", "narrow")
    with pytest.raises(
        ValueError, match=r"no kind 'narow'.*compose, fit, identity, lowrank, narrow"
    ):
        SearchSection(kinds=["narow"])
    graph = trace(network("basic"), images(1))
    assert enumerate_candidates(graph) == enumerate_candidates(graph, kinds=usual)
    more = enumerate_candidates(graph, kinds=[*usual, "narrow"])
    assert [c for c in more if c.kind != "narrow"] == list(enumerate_candidates(graph))
    assert {c.kind for c in more} == {*usual, "narrow"} < {kind.name for kind in kinds_of()}
    paper = enumerate_candidates(graph, "paper")
    assert enumerate_candidates(graph, "paper", kinds=[*usual, "narrow"]) == paper
    alone = enumerate_candidates(graph, kinds=["identity"])
    assert sum(c.original for c in alone) == len(graph.units)
    with pytest.raises(UsageError, match="no kind 'wide'"):
        enumerate_candidates(graph, kinds=["wide"])


def test_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device where arithmetic alone costs."""
    costs = {**FakeBackend.__init__.__kwdefaults__, "overhead_ms": 0.0, "ms_per_mib": 0.0}
    monkeypatch.setattr(FakeBackend.__init__, "__kwdefaults__", {**costs, "ms_per_gmac": 100.0})
    recipe = tiny.write_project(tmp_path)
    asked = {"search.kinds": ["narrow"], "search.speedup": 1.1}
    summary, _ = tiny.run(tmp_path / "runs", recipe, overrides=asked)
    folder = tmp_path / "runs" / "tiny"
    plan = MergePlan.load(folder / "plan.json")
    assert {c.kind for c in plan.changed} == {"narrow"} and summary["speedup"] > 1.1
    assert '"kind": "fit"' not in (folder / "candidates.jsonl").read_text()
    assert '"repair": "channels"' in (folder / "importance.jsonl").read_text()
    assert summary["certificate_max_rel_error"] < 1e-4
    assert summary["merged"]["convs"] == summary["original"]["convs"]
    assert summary["merged"]["activations"] == summary["original"]["activations"]
    assert "| narrow |" in (folder / "report.md").read_text()
    usual = {"search.kinds": ["compose", "fit"]}
    _, told = tiny.run(tmp_path / "runs", overrides=usual, only_stage="inspect")
    assert told.stages("run") == ("inspect",)
    assert '"kind": "narrow"' not in (folder / "candidates.jsonl").read_text()
