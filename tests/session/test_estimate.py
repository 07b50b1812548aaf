"""How long a search will take is told within a factor of two of what it took."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision

from benchmarks.bm_search import PAGE
from tests import nets
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.jsonio import read_lines
from trt_layermerge.kinds import enumerate_candidates
from trt_layermerge.session.estimate import Speed, estimate, told
from trt_layermerge.session.settings import Settings
from trt_layermerge.tracing import trace

MACS = {"mobilenet_v2": 300_774_272, "tf_efficientnet_lite0": 385_187_552}
PER_SECOND = {"mobilenet_v2": 2 * 1.107e10, "tf_efficientnet_lite0": 2 * 0.933e10}
"""Multiply-accumulates of a forward pass on the two cores that the recorded searches ran on."""

DENSE_PER_SECOND = 2 * 4.07e10


def settings(**sections: Any) -> Settings:
    return Settings.model_validate(sections)


@pytest.mark.parametrize("name", MACS)
def test_a_recorded_search_took_about_as_long_as_is_told(name: str) -> None:
    row = next(r for r in read_lines(PAGE.data, PAGE.name)[1] if r["network"] == name)
    own = hasattr(torchvision.models, name)
    model = torchvision.models.get_model(name) if own else timm.create_model(name)
    graph = trace(model.eval(), torch.zeros(1, 3, 224, 224))
    speed = Speed(1 / PER_SECOND[name], 1 / DENSE_PER_SECOND, 2)
    found = estimate(graph, enumerate_candidates(graph), MACS[name], speed, settings())
    took = sum(row["seconds"][stage] for stage in ("latency", "importance", "search"))
    assert took / 2 < found.total < 2 * took


@pytest.fixture(scope="module")
def small() -> tuple[LayerGraph, tuple[Candidate, ...]]:
    graph = trace(nets.basic_resnet(), nets.example())
    return graph, enumerate_candidates(graph)


SPEED, LARGE = Speed(1e-10, 1e-11, 1), 1e9


def test_what_is_done_less_takes_less(small: tuple[LayerGraph, tuple[Candidate, ...]]) -> None:
    usual = estimate(*small, LARGE, SPEED, settings())
    quick = told(*small, LARGE, SPEED, settings())["quick_s"]
    fewer = estimate(*small, LARGE, SPEED, settings(measure={"networks": 2}))
    thorough = estimate(*small, LARGE, SPEED, settings(importance={"effort": "thorough"}))
    assert quick is not None and quick < usual.total < thorough.total
    assert None not in (fewer.latency, usual.latency)
    assert (fewer.latency or 0) < (usual.latency or 0)
    assert fewer.importance == usual.importance


def test_a_machine_of_half_the_speed_takes_twice_as_long(
    small: tuple[LayerGraph, tuple[Candidate, ...]],
) -> None:
    slow = Speed(2 * SPEED.s_a_mac, 2 * SPEED.dense_s, 1)
    once, twice = (estimate(*small, LARGE, speed, settings()) for speed in (SPEED, slow))
    assert twice.importance == pytest.approx(2 * (once.importance or 0))


@pytest.mark.parametrize(
    "measure", [{"host": "jetson"}, {"recorded": True}, {"backend": "tensorrt"}]
)
def test_latencies_of_another_device_are_not_estimated(
    small: tuple[LayerGraph, tuple[Candidate, ...]], measure: dict[str, Any]
) -> None:
    found = estimate(*small, LARGE, SPEED, settings(measure=measure))
    assert found.latency is None
    assert found.importance is not None


def test_short_trainings_are_not_estimated(
    small: tuple[LayerGraph, tuple[Candidate, ...]],
) -> None:
    found = told(*small, LARGE, SPEED, settings(importance={"method": "finetune"}))
    assert found["seconds"]["importance"] is None
    assert found["quick_s"] is None


def test_the_speed_is_that_of_short_forward_passes() -> None:
    found = Speed.of(nets.basic_resnet().eval(), nets.example(), 1e9)
    assert 0 < found.s_a_mac < 1e-6
    assert 0 < found.dense_s < 1e-7
    assert found.threads == torch.get_num_threads()
