"""Whole networks of plans, timed beside the original."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests import nets
from trt_layermerge.backends import get_backend
from trt_layermerge.core.callbacks import Callbacks
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.kinds import enumerate_candidates
from trt_layermerge.measure.meter import BackendMeter, Outcome
from trt_layermerge.session import networks
from trt_layermerge.session.networks import Networks
from trt_layermerge.tracing import trace


class Counting(BackendMeter):
    """Knows how many networks were held at a time."""

    def __init__(self) -> None:
        super().__init__(get_backend("fake"))
        self.held: list[int] = []

    def networks(self, original: bytes, others: Sequence[bytes], *args: Any) -> list[Outcome]:
        self.held.append(len(others))
        return super().networks(original, others, *args)


def test_networks_are_timed_in_as_many_runs_as_memory_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, example = nets.basic_resnet().eval(), nets.example(size=16, batch=1)
    graph = trace(model, example)
    removals = [c for c in enumerate_candidates(graph) if c.kind == "identity"][:5]
    plans = [MergePlan.of(graph, [candidate]) for candidate in removals]

    def measured() -> tuple[list[int], float, list[float]]:
        meter = Counting()
        made = Networks(model, graph, example, "fp32", "fp32", meter, Callbacks())
        original_ms, found = made.measure(plans, None, 3)
        assert [m.plan for m in found] == plans
        return meter.held, original_ms, [m.ms for m in found]

    held, original_ms, latencies = measured()
    assert held == [5] and len({round(ms, 6) for ms in latencies}) > 1
    size = len(
        Networks(model, graph, example, "fp32", "fp32", Counting(), Callbacks()).original_onnx
    )
    monkeypatch.setattr(networks, "HELD_BYTES", 2 * size)
    held, again_ms, again = measured()
    assert held == [2, 2, 1]
    assert again_ms == pytest.approx(original_ms) and again == pytest.approx(latencies)
