"""Random plans of any graph, seeded, for tests that must hold whatever was chosen."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from trt_layermerge.core.candidate import Candidate, finish, left_out, merged_spec
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.core.geometry import composition
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.unit import Block, OpaqueUnit
from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.kinds import refusal

KINDS = ("compose", "fit", "identity")
KERNELS = (1, 2, 3, 5)


def composed(graph: LayerGraph, start: int, end: int, kept: Sequence[int]) -> Candidate:
    """Returns the candidate that keeps these units of a block and merges them."""
    block = Block(start, end)
    spec = merged_spec(graph, block, tuple(kept))
    return finish(graph, block, "compose", tuple(kept), (spec,))


def removed(graph: LayerGraph, start: int, end: int) -> Candidate:
    """Returns the candidate that keeps only the shortcuts of a block.

    Raises:
        UnsupportedModelError: If the shortcuts do not line up.
    """
    block = Block(start, end)
    spec = composition(graph, block, ()).spec
    return finish(graph, block, "identity", (), () if spec is None else (spec,))


def fitted(graph: LayerGraph, start: int, end: int, kernel: int, groups: int = 1) -> Candidate:
    """Returns one new convolution in a block's place, padded to meet the block's output size."""
    units = [graph.conv_unit(i) for i in range(start, end)]
    first, last, strides = units[0].spec, units[-1].spec, [u.spec.stride for u in units]
    stride = (1, 1)
    for step in strides:
        stride = (stride[0] * step[0], stride[1] * step[1])
    totals = [
        max((out - 1) * step + kernel - size, 0)
        for out, step, size in zip(last.out_size, stride, (first.height, first.width), strict=True)
    ]
    top, left = totals[0] // 2, totals[1] // 2
    spec = ConvSpec(
        first.in_channels,
        last.out_channels,
        (kernel, kernel),
        stride,
        (top, left, totals[0] - top, totals[1] - left),
        (1, 1),
        groups,
        first.height,
        first.width,
    )
    return finish(graph, Block(start, end), "fit", (), (spec,))


def candidates_of(
    graph: LayerGraph,
    rng: random.Random,
    kinds: Sequence[str] = KINDS,
    longest: int = 6,
    kernels: Sequence[int] = KERNELS,
) -> Iterator[Candidate]:
    """Yields a few random candidates of every block that can be merged."""
    for block in graph.blocks("full"):
        if len(block) > longest:
            continue
        for kind in kinds:
            candidate = _draw(graph, block, kind, rng, kernels)
            if candidate is not None and refusal(graph, candidate) is None:
                yield candidate


def random_plan(
    graph: LayerGraph,
    seed: int,
    kinds: Sequence[str] = KINDS,
    longest: int = 6,
    kernels: Sequence[int] = KERNELS,
) -> MergePlan:
    """Returns a plan that replaces as many disjoint blocks as a random order allows.

    Args:
        graph: What is planned.
        seed: Decides everything.
        kinds: Kinds of candidates to draw from.
        longest: Units that a block may have at most.
        kernels: Sizes of new convolutions.
    """
    rng = random.Random(seed)
    candidates = list(candidates_of(graph, rng, kinds, longest, kernels))
    return disjoint(graph, candidates, rng)


def disjoint(graph: LayerGraph, candidates: Sequence[Candidate], rng: random.Random) -> MergePlan:
    """Returns as many candidates, drawn one by one, as stand beside each other."""
    shuffled = list(candidates)
    rng.shuffle(shuffled)
    taken: set[int] = set()
    chosen = []
    for candidate in shuffled:
        units = set(range(candidate.block.start, candidate.block.end))
        if not units & taken:
            taken |= units
            chosen.append(candidate)
    return MergePlan.of(graph, chosen)


def _draw(
    graph: LayerGraph, block: Block, kind: str, rng: random.Random, kernels: Sequence[int]
) -> Candidate | None:
    if any(isinstance(unit, OpaqueUnit) for unit in graph.units[block.start : block.end]):
        branch = graph.branch_at(block)
        return left_out(graph, branch, kind) if branch and kind == "identity" else None
    if kind == "fit":
        return fitted(graph, block.start, block.end, rng.choice(kernels))
    try:
        if kind == "identity":
            return removed(graph, block.start, block.end)
        units = range(block.start, block.end)
        kept = [i for i in units if graph.units[i].irreducible or rng.random() < 0.6]
        return composed(graph, block.start, block.end, kept)
    except (ValueError, UnsupportedModelError):
        return None
