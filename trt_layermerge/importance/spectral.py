"""``spectral``: how much of its weights a block's replacement leaves out; no data, no training."""

from __future__ import annotations

from torch import nn

from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.tables import ImportanceEntry
from trt_layermerge.kinds import kind_of
from trt_layermerge.merge.relax import retrace


class SpectralScorer:
    """Scores candidates by the relative error of their weights in the spectral norm.

    Such errors are no losses of the network. Of a plan the worst one counts, as published (ALDS,
    NeurIPS 2021), and they mix with no other score.

    Args:
        model: The trained network; left untouched.
        graph: What was traced of it.

    Raises:
        UsageError: If the graph is not the model's.
    """

    def __init__(self, model: nn.Module, graph: LayerGraph) -> None:
        self._traced = retrace(model, graph)

    def entry(self, candidate: Candidate, first: bool = False) -> ImportanceEntry:
        """Returns minus the error; exact at the first look already.

        Raises:
            UnsupportedModelError: If weights do not tell what the candidate leaves out.
        """
        error = kind_of(candidate).weight_error(self._traced, candidate)
        return ImportanceEntry(-error, "spectral")
