"""Every spec of a network as ONNX: layers from their geometry, pieces cut out of the network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, fx, nn

from trt_layermerge.core.conv import PieceSpec, Spec
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.errors import UsageError
from trt_layermerge.measure.spec_model import spec_model
from trt_layermerge.merge.segments import Segment, record, segment
from trt_layermerge.session.networks import Networks, onnx_of


@dataclass(frozen=True)
class SpecModels:
    """Makes the ONNX models that a latency table is measured with.

    Attributes:
        networks: The network, with the batch and the types that are measured.
    """

    networks: Networks

    def __call__(self, spec: Spec) -> bytes:
        """Returns the model of a spec.

        Raises:
            UnsupportedModelError: If a piece cannot be exported.
            UsageError: If the network has no such piece, or the precision cannot be measured.
        """
        networks = self.networks
        if not isinstance(spec, PieceSpec):
            batch = len(networks.example)
            return spec_model(spec, networks.precision, batch, networks.fallback)
        if spec not in self._ends:
            raise UsageError(f"the network has no {spec}; trace it again (the inspect stage)")
        source, end = self._ends[spec]
        network = networks.traced.module
        piece = _One(segment(network, frozenset({source}), (end,))).eval()
        value = record(network, networks.example, [source])[source]
        return onnx_of(piece, value, networks.precision, networks.fallback)

    @cached_property
    def _ends(self) -> dict[PieceSpec, tuple[str, str]]:
        return piece_ends(self.networks.graph)


def piece_ends(graph: LayerGraph) -> dict[PieceSpec, tuple[str, str]]:
    """Returns the first place of every piece of a graph: the values that it reads and puts out."""
    found: dict[PieceSpec, tuple[str, str]] = {}
    for branch in graph.branches:
        unit = graph.units[branch.end - 1]
        assert isinstance(unit.spec, PieceSpec)  # a branch ends with its opaque unit
        found.setdefault(unit.spec, (branch.source, unit.nodes.out))
        for spec in branch.remains:
            if isinstance(spec, PieceSpec) and branch.shortcut is not None:
                found.setdefault(spec, (branch.source, branch.shortcut))
    return found


class _One(nn.Module):
    """A part of a network with one input and one output."""

    def __init__(self, part: Segment) -> None:
        super().__init__()
        self.part: fx.GraphModule = part.module

    def forward(self, x: Tensor) -> Tensor:
        """Maps the value that is read to the one that comes out."""
        (value,) = self.part(x)
        assert isinstance(value, Tensor)
        return value
