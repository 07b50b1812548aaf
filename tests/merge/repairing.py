"""Repair of one block on known values."""

from __future__ import annotations

from torch import Tensor

from trt_layermerge.blocks import RelaxedBlock
from trt_layermerge.merge.repair import Pairs, repair_in_turn


def repair_block(
    block: RelaxedBlock, inputs: Tensor, targets: Tensor, method: str, seed: int = 0
) -> None:
    """Fits one block in place."""
    parts = inputs.split(64), targets.split(64)
    pairs = Pairs(len(inputs), lambda: zip(*parts, strict=True))
    assert list(repair_in_turn(block, pairs, [method], seed)) == [method]
