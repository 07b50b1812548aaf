"""Linear operations become convolutions and normalisations, before a network is read.

Each pass states its algebra at its top. The network computes the same afterwards, up to rounding;
names of nodes and of modules depend on the model alone, never on the values of its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import fx

from trt_layermerge.tracing.functionalise import has_effect
from trt_layermerge.tracing.reading import Reading
from trt_layermerge.tracing.rewrites.affine import fold_affine
from trt_layermerge.tracing.rewrites.alone import stand_alone
from trt_layermerge.tracing.rewrites.padding import fold_padding
from trt_layermerge.tracing.rewrites.parallel import join_parallel
from trt_layermerge.tracing.rewrites.pooling import pool_by_convolution
from trt_layermerge.tracing.rewrites.spelled import spell_convolutions
from trt_layermerge.tracing.rewrites.standardised import standardise

__all__ = ["make_linear"]

PASSES: tuple[Callable[[Reading], None], ...] = (
    standardise,
    spell_convolutions,
    join_parallel,
    fold_padding,
    pool_by_convolution,
    fold_affine,
    stand_alone,
)
"""In this order: each finds what the ones before it left plain."""


def make_linear(network: fx.GraphModule, opaque: Mapping[str, str]) -> None:
    """Turns linear operations into convolutions and normalisations, in place.

    Args:
        network: A traced network, free of in-place operations, with recorded shapes.
        opaque: Reason by qualified name, for modules that are recorded as one unknown call.
    """
    for rewrite in PASSES:
        rewrite(Reading(network, opaque))
        network.graph.eliminate_dead_code(has_effect)
    network.recompile()
