"""What the kinds of the product say about themselves, and what is too large for them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests import nets
from tests.plans import composed, fitted, removed
from tests.search.graphs import Chain, resnet50
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.errors import UnsupportedModelError, UsageError
from trt_layermerge.kinds import (
    Kind,
    enumerate_candidates,
    families,
    fit_refusal,
    judged_candidates,
    kind_of,
    kinds_of,
    refusal,
    register,
)
from trt_layermerge.kinds.fit import Fit
from trt_layermerge.merge import build_block, relax, repair
from trt_layermerge.merge.leastsq import Moments
from trt_layermerge.tracing import trace, trace_network

LS = ("ls-zero", "ls-identity", "ls-variance")


def test_rules_and_families() -> None:
    assert [kind.name for kind in kinds_of("paper")] == ["compose"]
    assert [kind.name for kind in kinds_of("full")] == ["compose", "fit", "identity"]
    assert families() == (
        ("compose", "fit", "identity", "lowrank", "narrow", "stream"),
        ("compose", "identity", "lowrank", "narrow", "stream"),
        ("compose", "identity"),
        ("identity",),
    )
    with pytest.raises(UsageError, match="no rules 'ful'"):
        enumerate_candidates(Chain(3, 8).conv(4, 3).graph(), "ful")  # type: ignore[arg-type]


def test_a_registered_kind_joins_its_family_and_leaves_again() -> None:
    class Removing(Fit):
        name = "gone"
        family = "removal"

    with register(Removing()):
        assert [set(names) for names in families()] == [
            {"compose", "fit", "gone", "identity", "lowrank", "narrow", "stream"},
            {"compose", "gone", "identity", "lowrank", "narrow", "stream"},
            {"compose", "gone", "identity"},
            {"gone", "identity"},
        ]
        with pytest.raises(ValueError, match="'gone' already"):
            register(Removing())
    undo = register(Removing())
    assert len(kinds_of("full")) == 4
    undo.__exit__(None, None, None)
    assert len(kinds_of("full")) == 3


def test_the_report_can_tell_kinds_apart() -> None:
    kinds = kinds_of()
    assert len({kind.colour for kind in (*kinds, Fit)} | {Kind.colour}) == len(kinds) + 1
    assert len({kind.label for kind in kinds}) == len(kinds)


def test_repairs_by_what_a_block_is_made_of() -> None:
    traced = trace_network(nets.basic_resnet(), nets.example())
    graph = traced.graph

    def repairs(candidate) -> tuple[str, ...]:
        return kind_of(candidate).repairs(build_block(traced, candidate))

    assert repairs(removed(graph, 1, 3)) == ("none",)
    assert repairs(fitted(graph, 1, 3, 3)) == LS
    assert repairs(composed(graph, 1, 3, [1, 2])) == ("none", *LS)
    # Only the projection of units 3 and 4 is left, and no unit behind it: nothing to fit.
    shortcut = replace(removed(graph, 3, 5), kind="compose")
    assert repairs(shortcut) == ("none", "bn")


def test_a_fit_too_large_is_refused_by_its_size() -> None:
    assert fit_refusal(1, 11585) is None  # 8 · 11585² bytes are 1.0000 GiB from below
    assert fit_refusal(1, 11586) is not None
    assert fit_refusal(4, 5792) is None and fit_refusal(4, 5793) is not None
    assert "51200 weights an output channel needs 19.5 GiB" in (fit_refusal(1, 2048 * 25) or "")
    for unknowns, told in [(11800, "1.04 GiB"), (11586, "1.0001 GiB")]:  # no less than tells apart
        assert f"needs {told}" in (fit_refusal(1, unknowns) or "")
    assert (fit_refusal(1, 11800) or "").endswith("limit is 1.00 GiB")


def test_large_fits_of_a_resnet50_are_refused_and_nothing_else_is() -> None:
    graph = resnet50()
    found = list(judged_candidates(graph, "full", None))
    large = [(c, why) for c, why in found if why is not None and "GiB" in why]
    assert large and all(c.kind == "fit" for c, _ in large)
    for candidate, why in found:
        if candidate.kind != "fit" or "GiB" in (why or ""):
            continue
        spec = candidate.convs[-1]
        unknowns = spec.in_channels // spec.groups * spec.kernel[0] * spec.kernel[1]
        assert 8 * spec.groups * unknowns**2 <= 2**30
    assert min(c.convs[0].in_channels * c.convs[0].kernel[0] ** 2 for c, _ in large) > 11585


class Wide(nn.Module):
    """A block of 256 channels whose 7x7 fit has 12,544 unknowns an output channel: 1.2 GiB."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 256, 1),
            nn.ReLU(),
            nn.Conv2d(256, 4, 7, padding=3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 1),
            nn.ReLU(),
            nn.Conv2d(4, 256, 1),
            nn.ReLU(),
            nn.Conv2d(256, 4, 7, padding=3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).mean((2, 3))


@pytest.fixture
def no_large_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes moments fail that would take 100 MB or more."""
    zeros = torch.Tensor.new_zeros

    def small(like: torch.Tensor, *size: int, **options: object) -> torch.Tensor:
        assert (
            torch.Size(size[0] if size and isinstance(size[0], tuple) else size).numel() < 1 << 23
        )
        return zeros(like, *size, **options)

    monkeypatch.setattr(torch.Tensor, "new_zeros", small)


@pytest.mark.usefixtures("no_large_tensors")
def test_repair_from_python_takes_no_such_memory() -> None:
    model, x = Wide().eval(), nets.example(size=8, batch=4)
    graph = trace(model, x[:1])
    large = fitted(graph, 1, 3, 7)
    assert "1.2 GiB" in (refusal(graph, large) or "")
    with pytest.raises(UnsupportedModelError, match=r"12544 weights .* 1\.2 GiB"):
        relax(model, graph, MergePlan.of(graph, [large]))
    with pytest.raises(UnsupportedModelError, match=r"12544 weights .* repair none or bn"):
        Moments(nn.Conv2d(256, 4, 7))

    kept = composed(graph, 3, 5, [3, 4])  # its last unit is as large, but exact without a fit
    plan = MergePlan.of(graph, [kept])
    relaxed = relax(model, graph, plan)
    (block,) = relaxed.blocks.values()
    assert kind_of(kept).repairs(block) == ("none", "bn")
    assert block.last is not None and block.last.norm is not None
    before = block.last.norm.running_mean.clone()
    repair(relaxed, model, [x])
    assert not torch.equal(before, block.last.norm.running_mean)
    with pytest.raises(UnsupportedModelError, match=r"1\.2 GiB"):
        repair(relaxed, model, [x], {kept.key: "ls-zero"})


def test_searching_loads_no_torch() -> None:
    code = "import sys, trt_layermerge.kinds, trt_layermerge.search; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
