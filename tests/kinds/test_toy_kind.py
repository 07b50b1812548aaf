"""A new kind is one object: defined here, it goes through every stage, and no other file knows it.

``LowRank`` replaces one convolution W by an encoder of few channels and a 1x1 decoder, from the
singular values of W folded to C_out x (C_in·kh·kw) (ALDS, NeurIPS 2021, one group).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from tests import nets
from tests.pipeline import tiny
from trt_layermerge.backends.fake import FakeBackend
from trt_layermerge.blocks import ConvChain, Gather, RelaxedBlock, Start
from trt_layermerge.core.candidate import Candidate, finish
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.unit import Block
from trt_layermerge.errors import UnsupportedModelError, UsageError
from trt_layermerge.export.onnx import export_onnx
from trt_layermerge.importance.calibrate import CalibrateScorer
from trt_layermerge.kinds import (
    Kind,
    Limits,
    enumerate_candidates,
    kind_of,
    refusal,
    register,
    registry,
)
from trt_layermerge.merge import build_block, certify, collapse, relax, repair
from trt_layermerge.merge.segments import record
from trt_layermerge.merge.surgery import block_ports
from trt_layermerge.pipeline.options import STAGES
from trt_layermerge.tracing import TracedNetwork, trace, trace_network

RANK = 3
COSTS = {**FakeBackend.__init__.__kwdefaults__, "overhead_ms": 0.0, "ms_per_mib": 0.0}


class LowRank(Kind):
    name = "toyrank"
    label = "toy rank"
    rank = RANK

    def candidates(self, graph: LayerGraph, block: Block, limits: Limits) -> Iterator[Candidate]:
        spec = graph.units[block.start].spec.bare()
        if len(block) > 1 or spec.groups > 1:
            return
        encoder = replace(spec, out_channels=self.rank)
        ones, pads, size = (1, 1), (0, 0, 0, 0), spec.out_size
        decoder = ConvSpec(self.rank, spec.out_channels, ones, ones, pads, ones, 1, *size)
        yield finish(graph, block, self.name, (), (encoder, decoder))

    def starts(self, traced: TracedNetwork, candidate: Candidate) -> Sequence[Start | None]:
        unit, rank = traced.graph.units[candidate.block.start], candidate.convs[0].out_channels
        conv = traced.module.get_submodule(unit.name)
        u, s, v = torch.linalg.svd(conv.weight.detach().double().flatten(1), full_matrices=False)
        encoder = (s[:rank].sqrt()[:, None] * v[:rank]).reshape(rank, *conv.weight.shape[1:])
        decoder = (u[:, :rank] * s[:rank].sqrt())[:, :, None, None]
        norm = traced.module.get_submodule(unit.bn) if unit.bn else None
        return Start(encoder), Start(decoder, conv.bias, norm)


class Unstarted(LowRank):
    """The same convolutions from random weights: what scores must not be of."""

    def starts(self, traced: TracedNetwork, candidate: Candidate) -> Sequence[Start | None]:
        return ()


class FullRank(LowRank):
    rank = 6


class SelfFitted(LowRank):
    """Both convolutions from the one that fits the values of the block, not its weights."""

    def replacement(self, traced: TracedNetwork, candidate: Candidate) -> RelaxedBlock:
        like = next(traced.module.parameters())
        return SelfFittedChain(candidate, like, self.starts(traced, candidate))


class SelfFittedChain(ConvChain):
    fits = ("ranked",)

    def fit(self, method: str, gather: Gather) -> None:
        assert method == "ranked"
        encoder, decoder = self.bodies()
        spec = replace(self.candidate.convs[0], out_channels=decoder.conv.out_channels)
        dense = ConvChain(replace(self.candidate, convs=(spec,)), encoder.conv.weight)
        found = gather(dense.eval(), dense.last).solve(1e-6)
        u, s, v = torch.linalg.svd(found.weight.flatten(1), full_matrices=False)
        rank = encoder.conv.out_channels
        encoder.conv.weight.copy_((s[:rank, None] * v[:rank]).reshape(encoder.conv.weight.shape))
        encoder.conv.bias.zero_()
        decoder.install(u[:, :rank, None, None], found.bias, found.mean, found.variance)


def network() -> nn.Module:
    """Returns a network in float64 whose convolutions almost have the rank of the kind."""
    model = nets.basic_resnet().double()
    for conv in [m for m in model.modules() if isinstance(m, nn.Conv2d)]:
        with torch.no_grad():
            u, s, v = torch.linalg.svd(conv.weight.flatten(1), full_matrices=False)
            s[RANK:] *= 0.004
            conv.weight.copy_(((u * s) @ v).reshape(conv.weight.shape))
    return model


def images(count: int, seed: int) -> Tensor:
    return nets.example(size=12, batch=count, seed=seed).double()


def offered(graph: LayerGraph, start: int) -> Candidate:
    (found,) = (
        c for c in enumerate_candidates(graph) if c.kind == "toyrank" and c.block.start == start
    )
    return found


def start_error(model: nn.Module, kind: Kind) -> float:
    """Returns how far the new block is from the unit, in the norm of the unit's own values."""
    traced = trace_network(model, images(1, 0))
    with register(kind), torch.no_grad():
        candidate = offered(traced.graph, 1)
        ports, x = block_ports(traced, candidate), images(8, 3)
        found = record(traced.module, x, [ports.source, ports.target])
        inputs, wanted = found[ports.source], found[ports.target]
        return float((build_block(traced, candidate)(inputs) - wanted).norm() / wanted.norm())


def test_every_stage_from_enumeration_to_an_onnx_file(tmp_path: Path) -> None:
    model, x = network(), images(24, 1)
    graph = trace(model, x[:1])
    before = enumerate_candidates(graph)
    with register(LowRank()):
        rows = [json.dumps(c.to_json()) for c in enumerate_candidates(graph)]
        read = [Candidate.from_json(json.loads(row)) for row in rows]
        new = [c for c in read if c.kind == "toyrank"]
        assert [c for c in read if c not in new] == list(before)
        assert len(new) == len(graph.units)
        assert all(refusal(graph, c) is None for c in new)

        scorer = CalibrateScorer(model, graph, x, images(10, 2), batch=8)
        entries = [scorer.entry(c) for c in new]
        assert all(0 <= -entry.delta < 1e-3 for entry in entries)

        plan = MergePlan.of(graph, [c for c in new if c.block.start in (1, 3, 6)])
        relaxed = relax(model, graph, plan)
        methods = {c.key: e.repair for c, e in zip(new, entries, strict=True) if e.repair}
        repair(relaxed, model, x.split(8), methods)
        merged = collapse(relaxed)
        certificate = certify(relaxed, merged, x)
        assert certificate.ok and certificate.max_rel_error <= 1e-10
        assert {c.kind for c in certificate.checks} == {"whole", "toyrank"}
        convs = [m for m in merged.modules() if isinstance(m, nn.Conv2d)]
        original = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        assert len(convs) == len(original) + 3  # each of three became two
        assert not any(m.training for m in merged.modules())

        path = tmp_path / "model.onnx"
        export_onnx(merged.float(), x[:2].float(), path)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"input": x[:2].float().numpy()})
        with torch.no_grad():
            expected = relaxed(x[:2])
        error = (torch.from_numpy(found).double() - expected).abs().max()
        assert float(error / expected.abs().max()) <= 1e-5  # float32
    assert enumerate_candidates(graph) == before


def test_it_starts_from_its_singular_values_and_not_from_random_weights() -> None:
    model = network()
    assert start_error(model, LowRank()) < 0.02  # the tail that the rank leaves out
    assert start_error(model, FullRank()) < 1e-12
    assert start_error(model, Unstarted()) > 0.5


def test_it_is_scored_from_its_start() -> None:
    model = network()
    graph = trace(model, images(1, 0))

    def score(kind: Kind, **options: tuple[str, ...]) -> tuple[float, str | None]:
        with register(kind):
            scorer = CalibrateScorer(model, graph, images(24, 1), images(10, 2), **options)
            entry = scorer.entry(offered(graph, 1))
        return -entry.delta, entry.repair

    started, method = score(LowRank(), repairs=("none",))
    assert method == "none" and 0 < started < 1e-3
    full, _ = score(FullRank(), repairs=("none",))
    assert full < 1e-12
    best, _ = score(LowRank())
    unstarted, method = score(Unstarted())
    assert method in ("ls-zero", "ls-identity", "ls-variance")  # nothing else is tried
    assert best <= started < unstarted / 20


def test_a_fit_of_its_own_is_scored_named_and_repeated_in_a_plan() -> None:
    """Behind a block that was changed too, where the start knows nothing of what reaches it."""
    model, x = nets.basic_resnet().double(), images(24, 1)
    graph = trace(model, x[:1])
    with register(SelfFitted()):
        first, second = offered(graph, 1), offered(graph, 2)
        scorer = CalibrateScorer(model, graph, x, images(10, 2))
        assert scorer.entry(second, first=True).repair == "ranked"  # tries it alone
        both = (scorer.entry(second), scorer.entry(second, first=True))
        assert both[0].delta >= both[1].delta > -1
        assert kind_of(second).repairs(build_block(scorer._traced, second)) == ("none", "ranked")

        relaxed = relax(model, graph, MergePlan.of(graph, [first, second]))
        states = {}
        for name, methods in [("none", {second.key: "none"}), ("ranked", {second.key: "ranked"})]:
            repair(relaxed, model, x.split(8), {first.key: "none", **methods})
            states[name] = relaxed.blocks["b2_3"].state_dict()["stages.1.body.conv.weight"].clone()
        usual = relax(model, graph, MergePlan.of(graph, [first, second]))
        repair(usual, model, x.split(8), {first.key: "none"})
        found = usual.blocks["b2_3"].state_dict()["stages.1.body.conv.weight"]
        assert torch.equal(found, states["ranked"]) and not torch.equal(found, states["none"])
        with pytest.raises(UsageError, match=r"'best'; choose one of none, bn, .*, ranked"):
            repair(usual, model, x.split(8), {second.key: "best"})


def test_least_squares_pull_to_the_start() -> None:
    """The prior of the decoder is what it starts with, folded with its normalisation."""
    model = network()
    traced = trace_network(model, images(1, 0))
    with register(LowRank()):
        block = build_block(traced, offered(traced.graph, 1))
    start = block.last
    assert start is not None and start.norm is not None
    scale = start.norm.weight / (start.norm.running_var + start.norm.eps).sqrt()
    folded = start.conv.weight * scale.reshape(-1, 1, 1, 1)
    assert torch.allclose(block.prior(), folded.detach(), rtol=1e-12)


def test_chains_that_lead_elsewhere_are_refused() -> None:
    graph = trace(network(), images(1, 0))
    with register(LowRank()):
        good = offered(graph, 1)
        narrow = replace(good, convs=(good.convs[0], replace(good.convs[1], out_channels=5)))
        assert "5 channels" in (refusal(graph, narrow) or "")
        with pytest.raises(UnsupportedModelError, match="5 channels"):
            relax(network(), graph, MergePlan.of(graph, [narrow]))


def test_a_kind_that_nobody_knows_is_named() -> None:
    """As in a file that a newer version wrote."""
    model = network()
    graph = trace(model, images(1, 0))
    with register(LowRank()):
        candidate = offered(graph, 1)
        assert kind_of(candidate).label == "toy rank"
    with pytest.raises(UsageError, match="kind 'toyrank', and this version knows compose, fit"):
        kind_of(candidate)
    with pytest.raises(UsageError, match="toyrank"):
        relax(model, graph, MergePlan.of(graph, [candidate]))


def test_starts_of_another_shape_are_a_mistake() -> None:
    class Wrong(LowRank):
        def starts(self, traced: TracedNetwork, candidate: Candidate) -> Sequence[Start | None]:
            encoder, decoder = super().starts(traced, candidate)
            assert encoder is not None
            return replace(encoder, weight=encoder.weight[:1]), decoder

    with pytest.raises(ValueError, match="do not fit"):
        start_error(network(), Wrong())


def test_a_whole_run_searches_races_trains_and_reports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device where arithmetic alone costs, with no other kind that could save any."""
    monkeypatch.setattr(FakeBackend.__init__, "__kwdefaults__", {**COSTS, "ms_per_gmac": 100.0})
    for other in ("fit", "identity"):
        monkeypatch.delitem(registry._KINDS, other)
    recipe = tiny.write_project(tmp_path)
    asked = {"search.limits.max_units": 1, "search.speedup": 1.3}
    with register(LowRank()):
        summary, told = tiny.run(tmp_path / "runs", recipe, overrides=asked)
        folder = tmp_path / "runs" / "tiny"
        plan = MergePlan.load(folder / "plan.json")
        assert {c.kind for c in plan.changed} == {"toyrank"} and summary["speedup"] > 1.3
        assert plan.conv_count == 8 + len(plan.changed)
        scored = (folder / "importance.jsonl").read_text()
        assert '"kind": "toyrank"' in scored and '"kind": "fit"' not in scored
        assert any(label == "racing" for label, _ in told.steps)
        assert summary["certificate_max_rel_error"] < 1e-4
        assert summary["merged"]["accuracy"] > 0.5
        assert "| toyrank |" in (folder / "report.md").read_text()
        assert "toy rank" in (folder / "report.html").read_text()
        assert tiny.run(tmp_path / "runs")[1].stages("skip") == STAGES
