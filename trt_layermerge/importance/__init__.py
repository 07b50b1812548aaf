"""Candidate to score on data: what replacing one block does to the network's answers."""

from trt_layermerge.importance.table import Scorer, estimate

__all__ = ["Scorer", "estimate"]
