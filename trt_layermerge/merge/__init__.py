"""Networks are relaxed, repaired, collapsed and certified."""

from __future__ import annotations

from trt_layermerge.merge.block import (
    Ports,
    RelaxedBlock,
    block_key,
    block_ports,
    build_block,
)
from trt_layermerge.merge.certify import Certificate, certify
from trt_layermerge.merge.collapse import collapse
from trt_layermerge.merge.relax import RelaxedNet, relax
from trt_layermerge.merge.repair import REPAIRS, reestimate_bn, repair, repair_block

__all__ = [
    "REPAIRS",
    "Certificate",
    "Ports",
    "RelaxedBlock",
    "RelaxedNet",
    "block_key",
    "block_ports",
    "build_block",
    "certify",
    "collapse",
    "reestimate_bn",
    "relax",
    "repair",
    "repair_block",
]
