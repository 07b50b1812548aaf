"""The picture of the chain: where things stand by brute force, what is drawn by counting."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from tests.report import fakes
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.unit import Barrier, Residual, Segment
from trt_layermerge.report.chain import chain_picture
from trt_layermerge.report.chain_layout import (
    CUT_PENALTY,
    Row,
    fates,
    map_runs,
    surviving_residuals,
    wrap_rows,
)

SVG = "{http://www.w3.org/2000/svg}"


def _cost(graph: LayerGraph, cuts: tuple[int, ...]) -> float:
    """The cost of one way to wrap, as the docstring of ``wrap_rows`` states it."""
    rows = list(itertools.pairwise(cuts))
    ideal = len(graph.units) / -(-len(graph.units) // 7)
    torn = sum(r.start < end < r.end for _, end in rows for r in graph.residuals)
    return sum((ideal - (end - start)) ** 2 for start, end in rows) + CUT_PENALTY * torn


def test_rows_are_the_cheapest_of_all() -> None:
    graph = fakes.resnet20()
    plan = fakes.resnet_plan(graph)
    ends = [c.block.end for c in plan.candidates][:-1]
    every = [
        (0, *inner, 19)
        for count in range(6)
        for inner in itertools.combinations(ends, count)
        if all(b - a <= 7 for a, b in itertools.pairwise((0, *inner, 19)))
    ]
    rows = wrap_rows(graph, plan, columns=7)
    found = (0, *(row.end for row in rows))
    assert all(a.end == b.start for a, b in itertools.pairwise(rows))
    assert _cost(graph, found) == min(_cost(graph, cuts) for cuts in every)


@pytest.mark.parametrize("columns", [1, 5, 15, 100])
def test_rows_cover_everything_and_tear_no_block(columns: int) -> None:
    graph = fakes.mobilenet()
    plan = fakes.mobilenet_plan(graph)
    rows = wrap_rows(graph, plan, columns)
    covered = [index for row in rows for index in range(row.start, row.end)]
    assert covered == list(range(52))
    ends = {c.block.end for c in plan.candidates}
    assert {row.end for row in rows} <= ends
    assert max(row.end - row.start for row in rows) <= max(columns, 6)


def test_rows_of_an_empty_chain() -> None:
    graph = LayerGraph((), (), (), (), (1, 3, 8, 8))
    assert wrap_rows(graph, MergePlan(())) == ()
    ElementTree.fromstring(chain_picture(graph, MergePlan(())))


def test_fates_by_hand() -> None:
    graph = fakes.resnet20()
    found = fates(graph, fakes.resnet_plan(graph))
    dropped, refitted, merged = {3, 4, 9, 11}, {7, 8, 13, 14, 15, 16}, {1, 2, 10}
    for index, fate in enumerate(found):
        expected = (
            "dropped" if index in dropped else
            "refitted" if index in refitted else
            "merged" if index in merged else
            "untouched"
        )  # fmt: skip
        assert fate.conv == expected, index
    assert [i for i, fate in enumerate(found) if not fate.activation] == [
        1, 3, 4, 7, 9, 11, 13, 14, 15
    ]  # fmt: skip


def test_surviving_residuals_by_hand() -> None:
    graph = fakes.resnet20()
    survivors = surviving_residuals(graph, fakes.resnet_plan(graph))
    assert [(r.start, r.end) for r in survivors] == [(5, 7), (11, 13), (17, 19)]


def test_map_runs_by_hand() -> None:
    graph = fakes.resnet20()
    assert map_runs(graph, Row(5, 19)) == ((5, 7, (16, 16)), (7, 13, (8, 8)), (13, 19, (4, 4)))


def _titles(svg: str) -> list[str]:
    return [e.text or "" for e in ElementTree.fromstring(svg).iter(f"{SVG}title")]


def test_every_unit_and_every_candidate_is_drawn_once() -> None:
    run = fakes.mobilenet_run()
    titles = _titles(chain_picture(run.graph, run.plan))
    units = [t for t in titles if t.endswith(")")]
    assert [t.split(":")[0] for t in units if t.endswith("(dropped)")] == [
        f"{i} {run.graph.units[i].name}" for i in (6, 7, 8, 13, 15, 16, 17, 25, 45, 46, 47)
    ]
    assert len(units) == 52
    assert sorted(set(titles) - set(units)) == sorted(str(c) for c in run.plan.candidates)


def test_a_removed_convolution_is_crossed_and_a_kept_one_is_not() -> None:
    graph = fakes.resnet20()
    before = chain_picture(graph, MergePlan.of(graph, []))
    after = chain_picture(graph, MergePlan.of(graph, [fakes.identity(graph, 3, 5)]))
    legend = 1
    assert before.count('stroke-dasharray="4 3"') == legend
    assert after.count('stroke-dasharray="4 3"') == legend + 2


def test_a_merged_box_is_as_wide_as_its_block() -> None:
    graph = fakes.resnet20()
    svg = chain_picture(graph, MergePlan.of(graph, [fakes.fit(graph, 13, 17, 3)]))
    root = ElementTree.fromstring(svg)
    boxes = {
        (group.findtext(f"{SVG}title") or ""): group.find(f"{SVG}rect")
        for group in root.iter(f"{SVG}g")
    }
    spans = {name: box for name, box in boxes.items() if box is not None}
    wide = next(box for name, box in spans.items() if name.startswith("fit 13:17"))
    first = next(box for name, box in spans.items() if name.startswith("13 "))
    last = next(box for name, box in spans.items() if name.startswith("16 "))
    assert wide.get("x") == first.get("x")
    right = float(last.get("x", "nan")) + float(last.get("width", "nan"))
    assert float(wide.get("x", "nan")) + float(wide.get("width", "nan")) == right


def test_borders_between_segments_carry_their_reason() -> None:
    run = fakes.mobilenet_run()
    words = "".join(ElementTree.fromstring(chain_picture(run.graph, run.plan)).itertext())
    assert "before unit 33: the output of b29.pwl is read by" in words
    without = replace(run.graph, barriers=())
    words = "".join(ElementTree.fromstring(chain_picture(without, run.plan)).itertext())
    assert "before unit 33: nothing merges across" in words


def test_hostile_names_stay_text() -> None:
    graph = fakes.resnet20()
    hostile = '</title><script>alert("1")</script>&amp;'
    units = (replace(graph.units[0], name=hostile), *graph.units[1:])
    split = (Segment(0, 1), Segment(1, 19))
    graph = replace(graph, units=units, segments=split, barriers=(Barrier("x", hostile * 9, 1),))
    svg = chain_picture(graph, MergePlan.of(graph, []))
    assert "<script" not in svg
    assert any(hostile in title for title in _titles(svg))


def test_nested_and_torn_residuals_are_drawn() -> None:
    graph = fakes.resnet20()
    outer = Residual(1, 19, graph.residuals[0].shortcuts)
    nested = replace(graph, residuals=(outer, *graph.residuals))
    plan = MergePlan.of(nested, [])
    additions = len(re.findall(r'r="4.6"', chain_picture(nested, plan)))
    assert additions == 1 + 2 * (9 + 1)
    ElementTree.fromstring(chain_picture(nested, plan))
