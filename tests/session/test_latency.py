"""How many whole networks a latency table is fitted to: fewer where each is predicted well."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trt_layermerge.core.plan import MergePlan
from trt_layermerge.search.evaluator import Measured
from trt_layermerge.session import latency
from trt_layermerge.session.networks import Networks
from trt_layermerge.session.session import Session


def chain() -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(6):
        layers += [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers).eval()


def session(folder: Path) -> Session:
    settings = {
        "measure": {"backend": "fake", "networks": 16, "rounds": 3},
        "search": {"limits": {"max_units": 3, "kernels": [1, 3]}},
    }
    torch.manual_seed(0)
    return Session(chain(), torch.zeros(1, 8, 8, 8), folder=folder, settings=settings)


def count_networks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns how many networks are measured at a time, as they come."""
    measure, portions = Networks.measure, list[int]()

    def measured(self: Networks, plans: Sequence[MergePlan], *rest: Any) -> Any:
        portions.append(len(plans))
        return measure(self, plans, *rest)

    monkeypatch.setattr(Networks, "measure", measured)
    return portions


@pytest.mark.parametrize(("enough", "portions"), [(9, [9]), (13, [9, 4]), (99, [9, 4, 4])])
def test_more_networks_are_measured_until_all_are_predicted_well(
    enough: int, portions: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = count_networks(monkeypatch)
    monkeypatch.setattr(latency, "settled", lambda t: t.notes["fit"]["networks"] >= enough)
    table = session(tmp_path).measure()
    assert found == portions  # the untouched network and eight plans first
    assert table.notes["fit"]["networks"] == sum(portions)


def test_what_could_not_be_measured_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "settled", lambda _: False)
    told: list[str] = []
    opened = session(tmp_path)
    running = latency._running

    def failing(measured: Sequence[Measured], tell: object) -> list[Measured]:
        failed = Measured(measured[0].plan, 1.0, 1.0, 1.0, error="out of luck")
        return running([*measured, failed], tell)  # type: ignore[arg-type]

    monkeypatch.setattr(latency, "_running", failing)
    opened.tell = type(opened.tell)(opened.tell.progress, told.append)
    opened.measure()
    assert len([text for text in told if "out of luck" in text]) == 1
