"""Networks are relaxed, repaired, collapsed and certified."""

from __future__ import annotations

from trt_layermerge.merge.anneal import Annealed, hold_activations, set_linearity
from trt_layermerge.merge.certify import Certificate, certify
from trt_layermerge.merge.collapse import collapse, collapse_early
from trt_layermerge.merge.matching import matched
from trt_layermerge.merge.reconstruct import Reconstruction, match_error, reconstruct
from trt_layermerge.merge.relax import RelaxedNet, build_block, relax
from trt_layermerge.merge.repair import REPAIRS, reestimate_bn, repair

__all__ = [
    "REPAIRS",
    "Annealed",
    "Certificate",
    "Reconstruction",
    "RelaxedNet",
    "build_block",
    "certify",
    "collapse",
    "collapse_early",
    "hold_activations",
    "match_error",
    "matched",
    "reconstruct",
    "reestimate_bn",
    "relax",
    "repair",
    "set_linearity",
]
