"""Normalisations and activations that no convolution stands before get one that does nothing.

A batch normalisation γ·(x − μ)/σ + β in eval mode is a depthwise convolution of one tap. So the
normalisation of a pre-activation block, or one behind an activation, is a unit like others: the
identity as a convolution, and the normalisation behind it. It is the network's own normalisation,
in training too. Folding it into the convolution behind it,

    W'[o, c] = W[o, c] · γ[c]/σ[c]      b'[o] = b[o] + Σ_c,t W[o, c, t] · (β[c] − γ[c]·μ[c]/σ[c])

is what merging these two units does: exact without padding, and otherwise but for the borders,
where zeros stand behind the normalisation in the original, and before it in what is merged.
"""

from __future__ import annotations

from torch import fx

from trt_layermerge.tracing.forms import PassingConv2d
from trt_layermerge.tracing.reading import Reading, shape_of
from trt_layermerge.tracing.rewrites.nodes import call_before, leads_to_convolution, type_of


def stand_alone(reading: Reading) -> None:
    """Puts an identity before normalisations and activations that belong to no convolution.

    Of the activations, those of pre-activation blocks: a shortcut reads what they read.
    """
    like = type_of(reading.network)
    for node in reading.order:
        if len(shape_of(node)) != 4:
            continue
        if node in reading.norms:
            alone = _is_lone_norm(reading, node)
        else:
            alone = node in reading.activations and _is_lone_activation(reading, node)
        if alone:
            call_before(reading.network, node, PassingConv2d(shape_of(node)[1], 1.0, like))


def _is_lone_norm(reading: Reading, node: fx.Node) -> bool:
    source, users = reading.operand(node), reading.users(node)
    if source in reading.convs and reading.users(source) == (node,):
        return False
    if all(user in reading.additions for user in users):  # a shortcut by itself, as in RepVGG
        return len(reading.users(source)) == 1
    return leads_to_convolution(reading, node)


def _is_lone_activation(reading: Reading, node: fx.Node) -> bool:
    beside = reading.users(reading.operand(node))
    return any(user in reading.additions for user in beside) and leads_to_convolution(reading, node)
