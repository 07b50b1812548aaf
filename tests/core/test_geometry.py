"""Which blocks line up once their padding is hoisted, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.search.graphs import Chain, mobilenet_v2, resnet34
from trt_layermerge.core.candidate import finish, merged_spec, original_candidate
from trt_layermerge.core.conv import ConvSpec
from trt_layermerge.core.geometry import Apply, Close, Open, composition
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.unit import Block, Shortcut
from trt_layermerge.errors import UnsupportedModelError
from trt_layermerge.kinds import refusal


def basic(projection: bool = False) -> LayerGraph:
    """A stem and a residual of two 3x3 convolutions on an 8x8 map."""
    chain = Chain(3, 8).conv(4, 3)
    chain.conv(8 if projection else 4, 3, 2 if projection else 1)
    return chain.conv(8 if projection else 4, 3).residual(1).graph()


def candidate(graph: LayerGraph, start: int, end: int, kept: tuple[int, ...]):
    block = Block(start, end)
    return finish(graph, block, "compose", kept, (merged_spec(graph, block, kept),))


def with_shortcut(graph: LayerGraph, **changes: object) -> LayerGraph:
    """Returns the graph with another projection."""
    (residual,) = graph.residuals
    spec = replace(residual.shortcuts[0].spec, **changes)
    shortcut = Shortcut("projection", None, spec, "p")
    return replace(graph, residuals=(replace(residual, shortcuts=(shortcut,)),))


def test_steps_of_a_residual_in_order():
    graph = basic()
    found = composition(graph, Block(1, 3), (1, 2))
    (residual,) = graph.residuals
    assert found.steps == (
        Open(residual),
        Apply(1),
        Apply(2),
        Close(residual, False, 4, (5, 5), (1, 1), ((2, 2),)),
    )
    assert found.spec == merged_spec(graph, Block(1, 3), (1, 2))


def test_a_strided_projection_lies_behind_the_padding_of_its_branch():
    found = composition(basic(projection=True), Block(1, 3), (1, 2))
    close = found.steps[-1]
    assert isinstance(close, Close)
    # Branch: extent 3 + 2·2, stride 2, padding 1 + 2·1; the projection is one tap without padding.
    assert (close.extent, close.stride, close.offsets) == ((7, 7), (2, 2), ((3, 3),))


def test_an_empty_branch_counts_as_zero():
    found = composition(basic(), Block(1, 3), ())
    assert found.spec is None
    close = found.steps[-1]
    assert isinstance(close, Close) and close.empty
    projected = composition(basic(projection=True), Block(1, 3), ())
    assert projected.spec == basic(projection=True).residuals[0].projections[0]


def test_only_the_residuals_inside_take_part():
    graph = basic()
    assert composition(graph, Block(1, 2), (1,)).steps == (Apply(1),)


@pytest.mark.parametrize("graph", [resnet34(), mobilenet_v2()], ids=["resnet34", "mobilenet_v2"])
def test_all_kept_and_all_original_is_always_refusal(graph):
    for block in graph.blocks("paper"):
        everything = tuple(range(block.start, block.end))
        assert refusal(graph, candidate(graph, block.start, block.end, everything)) is None
    for index in range(len(graph.units)):
        assert refusal(graph, original_candidate(graph, index)) is None


def test_the_refusal_of_a_composition_names_the_units():
    graph = with_shortcut(basic(projection=True), stride=(1, 1))
    with pytest.raises(UnsupportedModelError, match=r"units 1 to 2 .*steps by"):
        composition(graph, Block(1, 3), (1, 2))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kernel": (9, 9), "padding": (4, 4, 4, 4)}, "reaches beyond"),
        ({"stride": (1, 1)}, "steps by"),
        ({"out_channels": 6}, "different shapes"),
    ],
)
def test_shortcuts_that_do_not_line_up(changes, reason):
    graph = with_shortcut(basic(projection=True), **changes)
    assert reason in (refusal(graph, candidate(graph, 1, 3, (1, 2))) or "")


def test_a_wide_projection_beside_a_branch_that_keeps_little():
    graph = Chain(4, 8).conv(4, 3).conv(8, 1).residual(0).graph()
    graph = with_shortcut(graph, kernel=(3, 3), padding=(1, 1, 1, 1))
    assert refusal(graph, candidate(graph, 0, 2, (0, 1))) is None
    assert "reaches beyond" in (refusal(graph, candidate(graph, 0, 2, (1,))) or "")


@pytest.mark.parametrize("axis", [0, 1])
def test_a_shortcut_that_begins_with_its_branch_may_still_end_beyond_it(axis):
    """Both begin one pixel before the map; of taps five wide, two lie behind the branch's three."""
    graph = Chain(4, 8).conv(8, 3).residual(0).graph()
    kernel, padding = [1, 1], [0, 0, 0, 0]
    kernel[axis], padding[axis], padding[2 + axis] = 5, 1, 3
    graph = with_shortcut(graph, kernel=tuple(kernel), padding=tuple(padding))
    reason = refusal(graph, original_candidate(graph, 0))
    assert reason == "the shortcut over units 0 to 0 reaches beyond what its branch sees"


def test_an_identity_between_dilated_taps():
    graph = Chain(4, 8).conv(4, 3).residual(0).graph()
    unit = graph.units[0]
    spec = replace(unit.spec, kernel=(2, 2), dilation=(2, 2), padding=(1, 1, 1, 1))
    graph = replace(graph, units=(replace(unit, spec=spec),))
    assert "dilated taps" in (refusal(graph, original_candidate(graph, 0)) or "")
    aligned = replace(spec, padding=(2, 2, 0, 0))
    graph = replace(graph, units=(replace(unit, spec=aligned),))
    assert refusal(graph, original_candidate(graph, 0)) is None


def test_blocks_that_cannot_stand():
    graph = resnet34()
    good = candidate(graph, 1, 3, (1, 2))
    assert refusal(graph, good) is None
    assert "within one segment" in (refusal(graph, replace(good, block=Block(0, 3))) or "")
    assert "in part" in (refusal(graph, replace(good, block=Block(2, 4))) or "")
    assert "not units of it" in (refusal(graph, replace(good, kept=(1, 3))) or "")
    assert "not units of it" in (refusal(graph, replace(good, kept=(2, 1))) or "")


def test_what_is_stated_must_be_what_it_composes_to():
    graph = basic()
    good = candidate(graph, 1, 3, (1, 2))

    def stating(spec: ConvSpec | None) -> str:
        return refusal(graph, replace(good, convs=() if spec is None else (spec,))) or ""

    assert "not the stated" in stating(replace(good.convs[0], kernel=(3, 3)))
    assert "do not refine" in stating(replace(good.convs[0], groups=4))
    assert "not the stated" in stating(None)
    gone = finish(graph, Block(1, 3), "identity", (), ())
    assert refusal(graph, gone) is None
    assert "nothing remains" in (refusal(graph, replace(gone, convs=good.convs)) or "")


def test_dropping_what_changes_the_shape():
    graph = Chain(4, 8).conv(4, 3).conv(4, 3, 2).conv(6, 1).graph()
    kept_last = replace(candidate(graph, 0, 3, (0, 1, 2)), kept=(0, 2))
    assert "a map of (8, 8), not (4, 4)" in (refusal(graph, kept_last) or "")
    without_widening = replace(kept_last, kept=(0, 1))
    assert "channels" in (refusal(graph, without_widening) or "")
    gone = finish(graph, Block(1, 2), "identity", (), ())
    assert "cannot change the shape" in (refusal(graph, gone) or "")


def test_new_convolutions_must_lead_from_input_to_output():
    graph = basic()
    spec = merged_spec(graph, Block(1, 3), (1, 2))

    def fit(*specs: ConvSpec) -> str | None:
        return refusal(graph, finish(graph, Block(1, 3), "fit", (), specs))

    assert fit(replace(spec, kernel=(3, 3), padding=(1, 1, 1, 1))) is None
    low = replace(spec, out_channels=2, kernel=(3, 3), padding=(1, 1, 1, 1))
    high = replace(spec, in_channels=2, kernel=(1, 1), padding=(0, 0, 0, 0))
    assert fit(low, high) is None
    assert "is not fed" in (fit(high, low) or "")
    assert "produce 4 channels of (6, 6)" in (fit(replace(spec, padding=(1, 1, 1, 1))) or "")
    assert "split into 3" in (fit(replace(spec, groups=3)) or "")
    assert "at least one" in (fit() or "")
