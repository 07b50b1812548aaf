"""Forwards that write in place, nest their outputs, take several inputs, or fix their type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.plans import random_plan, removed
from trt_layermerge.core.graph import graph_from_json, graph_to_json
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.errors import UnsupportedModelError, UsageError
from trt_layermerge.importance.calibrate import CalibrateScorer
from trt_layermerge.importance.distance import Distance
from trt_layermerge.merge import RelaxedNet, certify, collapse, relax
from trt_layermerge.tracing import trace

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions, and a forward that is given."""

    def __init__(self, run: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        for name, part in parts.items():
            self.add_module(name, part)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


class Pair(Net):
    """The same with two inputs."""

    def forward(self, x: Tensor, y: Tensor) -> Any:  # type: ignore[override]
        return self.run(self, x, y)


class Doubling(nn.Module):
    """Doubles its input in place, behind a decision that tracing cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) > -1e9:
            x.mul_(2).add_(1)
        return x


def without(model: nn.Module, unit: int) -> tuple[RelaxedNet, nn.Module]:
    graph = trace(model.eval(), X)
    relaxed = relax(model, graph, MergePlan.of(graph, [removed(graph, unit, unit + 1)]))
    return relaxed, collapse(relaxed)


@torch.no_grad()
def test_a_module_that_writes_in_place_leaves_what_comes_before_alone() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        y = torch.relu(net.a(x))
        return torch.cat([y, net.op(net.b(y))], 1)

    model, images = Net(run, op=Doubling()), X.clone()
    relaxed, merged = without(model, 1)
    y = torch.relu(model.a(X))
    wanted = torch.cat([y, 2 * y + 1], 1)
    assert torch.equal(relaxed(images), wanted)
    torch.testing.assert_close(merged(images), wanted, rtol=1e-5, atol=1e-5)
    assert certify(relaxed, merged, images).ok
    assert torch.equal(images, X)


@torch.no_grad()
def test_two_writes_and_the_reads_between_them() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        y = net.a(x)
        once = net.op(y)
        z = net.b(once)
        return torch.cat([once, net.op2(z), once], 1)

    model = Net(run, op=Doubling(), op2=Doubling())
    relaxed, merged = without(model, 1)
    once = 2 * model.a(X) + 1
    wanted = torch.cat([once, 2 * once + 1, once], 1)
    torch.testing.assert_close(relaxed(X), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(merged(X), wanted, rtol=1e-5, atol=1e-5)


def test_the_network_s_own_input_is_not_written_to() -> None:
    model = Net(lambda net, x: net.b(net.a(net.op(x))), op=Doubling())
    relaxed, merged = without(model, 1)
    images = X.clone()
    for network in (relaxed, merged):
        network(images)
        assert torch.equal(images, X)


def test_a_write_through_a_view_that_is_read_later_is_refused() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        y = net.b(net.a(x))
        return torch.cat([net.op(y.flatten(1)).sum().expand_as(y), y], 1)

    with pytest.raises(UnsupportedModelError, match="op changes its input in place"):
        without(Net(run, op=Doubling()), 1)


def nested(net: Any, x: Tensor) -> Any:
    y = torch.relu(net.a(x))
    return {"maps": [y, (net.b(y), y.mean((2, 3)))], "aux": y.argmax(1)}


def test_nested_outputs_are_compared_tensor_by_tensor() -> None:
    model = Net(nested)
    graph = trace(model.eval(), X)
    relaxed = relax(model, graph, random_plan(graph, 2))
    merged = collapse(relaxed)
    assert relaxed.plan.changed
    assert set(merged(X)) == {"maps", "aux"}
    assert certify(relaxed, merged, X).ok

    class Off(nn.Module):
        def forward(self, x: Tensor) -> Any:
            found = merged(x)
            found["maps"][1] = (found["maps"][1][0], found["maps"][1][1] * 1.001)
            return found

    whole = certify(relaxed, Off(), X).checks[0]
    assert not whole.ok and whole.max_rel_error == pytest.approx(1e-3, rel=0.1)
    assert not certify(relaxed, Net(lambda net, x: merged(x)["maps"]), X).checks[0].ok


def test_the_distance_of_nested_outputs_is_the_mean_over_tensors() -> None:
    logits, maps = torch.tensor([[0.0, 0.0]]), torch.tensor([[[[2.0]]]])
    distance = Distance.to([{"y": logits, "m": [maps]}])
    other = {"y": torch.tensor([[1.0, 0.0]]), "m": [maps + 1]}
    p = torch.tensor([0.5, 0.5]).double()
    q = torch.tensor([1.0, 0.0]).double().log_softmax(0)
    kl = float((p * (p.log() - q)).sum())
    assert distance.of(iter([other])) == pytest.approx((kl + 0.25) / 2)
    assert Distance.to([(logits, logits)]).name == "KL"


def test_candidates_of_a_network_with_nested_outputs_are_scored() -> None:
    model = Net(nested)
    graph = trace(model.eval(), X)
    scorer = CalibrateScorer(model, graph, X, X, repairs=("none",))
    assert scorer.entry(removed(graph, 1, 2)).delta < 0


def test_several_inputs() -> None:
    model = Pair(lambda net, x, y: net.b(torch.relu(net.a(x))) + y)
    inputs = X, X[:, :, :, :1].clone()
    graph = trace(model.eval(), inputs)
    assert graph.further_shapes == ((2, 3, 8, 1),)
    assert graph_from_json(graph_to_json(graph)) == graph
    relaxed = relax(model, graph, MergePlan.of(graph, [removed(graph, 0, 1)]))
    merged = collapse(relaxed)
    torch.testing.assert_close(merged(*inputs), relaxed(*inputs))
    assert certify(relaxed, merged, inputs).ok
    with pytest.raises(UsageError, match=r"takes 2 inputs .x, y."):
        CalibrateScorer(model, graph, X, X)


def test_a_graph_written_before_there_were_several_inputs_is_read() -> None:
    graph = trace(Net(lambda net, x: net.b(net.a(x))).eval(), X)
    body = {k: v for k, v in graph_to_json(graph).items() if k != "further_shapes"}
    assert graph_from_json(body) == graph


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda net, x: net.b(net.a(x).to(torch.float32)), "in float64"),
        (lambda net, x: net.b(net.a(x)).float(), "casts to a fixed type"),
        (lambda net, x: net.b(net.a(x)).float().to(x.dtype) * 2, "casts to a fixed type"),
    ],
)
def test_a_network_that_fixes_its_type_is_compared_in_it_and_says_so(run: Any, words: str) -> None:
    model = Net(run)
    graph = trace(model.eval(), X)
    relaxed = relax(model, graph, MergePlan.of(graph, [removed(graph, 0, 1)]))
    certificate = certify(relaxed, collapse(relaxed), X)
    assert certificate.ok
    assert words in (certificate.note or "")
    assert certificate.to_json()["note"] == certificate.note
    assert [c.dtype for c in certificate.checks] == ["float32", "float32", "float64"]
    wrong = collapse(relaxed)
    with torch.no_grad():
        next(wrong.parameters()).mul_(1.01)
    assert not certify(relaxed, wrong, X).ok
    free = relax(Net(nested), other := trace(Net(nested), X), MergePlan.of(other, []))
    assert certify(free, collapse(free), X).note is None
