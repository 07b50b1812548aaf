"""What stands in a block's place: trainable, and merged in the end."""

from __future__ import annotations

from trt_layermerge.blocks.algebra import Kernel
from trt_layermerge.blocks.bridged import BridgedBlock
from trt_layermerge.blocks.chain import ConvChain
from trt_layermerge.blocks.composed import ComposedBlock
from trt_layermerge.blocks.layers import ConvNorm, Start
from trt_layermerge.blocks.lowrank import LowRankChain
from trt_layermerge.blocks.narrowed import NarrowChain
from trt_layermerge.blocks.relaxed import Gather, RelaxedBlock

__all__ = [
    "BridgedBlock",
    "ComposedBlock",
    "ConvChain",
    "ConvNorm",
    "Gather",
    "Kernel",
    "LowRankChain",
    "NarrowChain",
    "RelaxedBlock",
    "Start",
]
