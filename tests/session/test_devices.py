"""What computes on another device, asked for it by name; here a processor stands in for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from trt_layermerge.errors import DeviceError
from trt_layermerge.finetune import device
from trt_layermerge.finetune.device import lent
from trt_layermerge.pipeline.api import open_run
from trt_layermerge.pipeline.options import NullReporter, RunOptions
from trt_layermerge.pipeline.run import Run
from trt_layermerge.session import searching, starts, verifying
from trt_layermerge.session.scoring import scorer_of


class Traveller(nn.Module):
    """Remembers where it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def to(self, device: torch.device) -> Traveller:  # type: ignore[override]
        self.places.append(str(device))
        return self

    def cpu(self) -> Traveller:
        self.places.append("home")
        return self


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every device one that this machine has."""
    monkeypatch.setattr(device, "device_named", torch.device)


@pytest.mark.usefixtures("there")
def test_networks_come_back_whatever_happens() -> None:
    first, second = Traveller(), Traveller()
    with pytest.raises(ValueError, match="no"), lent("cuda:1", first, second) as place:
        assert place == torch.device("cuda:1")
        raise ValueError("no")
    assert first.places == second.places == ["cuda:1", "home"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there_is_told_before_anything_moves() -> None:
    network = Traveller()
    with pytest.raises(DeviceError, match="cannot compute on 'cuda' here"), lent("cuda", network):
        pass
    assert network.places == []


@pytest.mark.usefixtures("there")
def test_convolutions_are_not_rounded_on_a_gpu() -> None:
    before = torch.backends.cudnn.allow_tf32
    with lent("cuda"):
        assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.enabled
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.fixture
def run(runs: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, list[tuple[str, int]]]:
    """Returns a run that asks for a GPU, and the device and number of all networks lent to it."""
    asked: list[tuple[str, int]] = []

    @contextmanager
    def recorded(device: str, *networks: nn.Module) -> Iterator[torch.device]:
        asked.append((device, len(networks)))
        yield torch.device("cpu")

    for module in (searching, starts, verifying):
        monkeypatch.setattr(module, "lent", recorded)
    options = RunOptions("tiny", runs, overrides={"device": "cuda", "build.engine": "none"})
    return open_run(None, options, NullReporter()), asked


def test_a_joint_score_is_computed_on_the_device(run: tuple[Run, list[tuple[str, int]]]) -> None:
    opened, asked = run
    whole = opened.session.whole_networks(opened.train, opened.data("val"), None, Path())
    assert whole.joint_delta(opened.plan) < 0
    # The original's answers, the repair, and the answers of what was repaired.
    assert asked == [("cuda", 1)] * 3


def test_networks_are_verified_on_the_device(run: tuple[Run, list[tuple[str, int]]]) -> None:
    opened, asked = run
    opened.session.verify(opened.data("test"))
    assert asked == [("cuda", 3)]


def test_a_scorer_gets_the_device(run: tuple[Run, list[tuple[str, int]]]) -> None:
    opened, _ = run
    made = scorer_of(opened.session.model, opened.graph, opened.train, opened.recipe)
    assert isinstance(made, partial)
    assert made.keywords["device"] == "cuda"
