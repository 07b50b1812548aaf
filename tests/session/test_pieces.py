"""Parts of a network as ONNX, to be timed; and the whole way of a network full of gates."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn

import trt_layermerge as tlm
from tests import nets
from tests.search.test_branches import Gated
from trt_layermerge.backends import get_backend
from trt_layermerge.core.callbacks import Callbacks
from trt_layermerge.core.candidate import original_candidate
from trt_layermerge.core.conv import PieceSpec, Spec
from trt_layermerge.core.device import Precision
from trt_layermerge.errors import UnsupportedModelError, UsageError
from trt_layermerge.measure.meter import BackendMeter
from trt_layermerge.merge.relax import retrace
from trt_layermerge.merge.segments import record
from trt_layermerge.session.networks import Networks
from trt_layermerge.session.pieces import SpecModels, piece_ends
from trt_layermerge.tracing import trace


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nets.randomise(timm.create_model("seresnet18", num_classes=5))


def networks_of(model: nn.Module, precision: Precision = "fp32") -> Networks:
    example = nets.example(size=48, batch=2)
    meter = BackendMeter(get_backend("fake"))
    graph = trace(model, example)
    return Networks(model, graph, example, precision, "fp32", meter, Callbacks())


def test_a_piece_computes_what_the_network_computes_there(model: nn.Module) -> None:
    networks = networks_of(model)
    models, ends = SpecModels(networks), piece_ends(networks.graph)
    assert len(ends) == 7  # of eight branches, the second halves of one stage are alike
    traced = retrace(model, networks.graph).module
    for spec, (source, end) in list(ends.items())[:3]:
        values = record(traced, networks.example, [source, end])
        with get_backend("onnxruntime").open(models(spec)) as runner:
            (found,) = runner.infer({"input": values[source].numpy()}).values()
        expected = values[end].numpy()
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_pieces_are_typed_as_they_are_deployed(model: nn.Module, precision: Precision) -> None:
    import onnx

    models = SpecModels(networks_of(model, precision))
    spec = next(iter(piece_ends(models.networks.graph)))
    graph = onnx.load_from_string(models(spec)).graph
    operators = {node.op_type for node in graph.node}
    half = graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    assert half == (precision == "fp16")
    assert ("QuantizeLinear" in operators) == (precision == "int8")


def test_another_networks_piece_is_refused(model: nn.Module) -> None:
    with pytest.raises(UsageError, match="no piece 000000"):
        SpecModels(networks_of(model))(PieceSpec("0" * 64, 4, 4, 8, 8, (8, 8)))


def test_a_network_full_of_gates_goes_the_whole_way() -> None:
    """Measured, scored, searched, relaxed, merged, certified: branches are what it leaves out."""
    session = tlm.Session(
        nn.Sequential(nets.randomise(Gated()), nn.Flatten()),
        nets.example(size=48, batch=1),
        backend="fake",
        settings={
            "measure": {"rounds": 3, "networks": 4},
            "importance": {"fit_images": 16, "score_images": 16},
            "search": {"finalists": 1, "loops": 1, "samples": 2},
        },
    )
    session.measure()
    session.score([nets.example(size=48, batch=16, seed=s) for s in (1, 2)])
    plan = session.search(speedup=1.3)
    assert any(session.graph.branch_at(c.block) for c in plan.changed)
    relaxed, merged = session.relax(), session.merge()
    images = nets.example(size=48, seed=3)
    with torch.no_grad():
        wanted, found = relaxed(images), merged(images)
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert session.certificate.ok


def test_a_branch_that_cannot_be_timed_costs_what_its_units_do(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = SpecModels.__call__

    def refuse(models: SpecModels, spec: Spec) -> bytes:
        if isinstance(spec, PieceSpec):
            raise UnsupportedModelError("no exporter takes this")
        return make(models, spec)

    monkeypatch.setattr(SpecModels, "__call__", refuse)
    notes: list[str] = []
    session = tlm.Session(
        model,
        nets.example(size=48, batch=1),
        backend="fake",
        note=notes.append,
        settings={"measure": {"rounds": 3, "networks": 3}},
    )
    session.measure()
    graph, bare = session.graph, session.latencies.bare
    for branch in graph.branches:
        rest = original_candidate(graph, branch.end - 1)
        assert abs(bare.cost_ms(rest, "fp32", 1)) < 1e-12
    assert "7 sorts of branches could not be timed as a whole" in notes[0], notes
    assert "no exporter takes this" in notes[0]
