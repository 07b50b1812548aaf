"""The picture of the chain: what is drawn by counting, where it stands by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from tests.report import fakes
from trt_layermerge.core.candidate import Candidate
from trt_layermerge.core.graph import LayerGraph
from trt_layermerge.core.plan import MergePlan
from trt_layermerge.core.unit import Barrier, Block, Residual, Segment
from trt_layermerge.report.chain import (
    Row,
    chain_picture,
    map_runs,
    statuses,
    surviving_residuals,
    wrap_rows,
)
from trt_layermerge.report.data import Look, known_looks
from trt_layermerge.report.palette import BLUE, GREEN

SVG = "{http://www.w3.org/2000/svg}"

KINDS = known_looks()


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
    for row in rows:
        if any(r.start < row.end < r.end for r in graph.residuals):
            inside = [end for end in ends if row.start < end < row.end]
            assert all(any(r.start < end < r.end for r in graph.residuals) for end in inside)


def test_rows_are_even() -> None:
    graph = fakes.resnet20()
    rows = wrap_rows(graph, fakes.resnet_plan(graph), columns=13)
    assert [(row.start, row.end) for row in rows] == [(0, 9), (9, 19)]


def test_rows_of_an_empty_chain() -> None:
    graph = LayerGraph((), (), (), (), (1, 3, 8, 8))
    assert wrap_rows(graph, MergePlan(()), 13) == ()
    ElementTree.fromstring(chain_picture(graph, MergePlan(()), KINDS))


def test_statuses_by_hand() -> None:
    graph = fakes.resnet20()
    found = statuses(fakes.resnet_plan(graph), KINDS)
    dropped, fitted, merged = {3, 4, 9, 11}, {7, 8, 13, 14, 15, 16}, {1, 2, 10}
    for index, status in enumerate(found):
        expected = (
            "dropped" if index in dropped else
            KINDS["fit"].label if index in fitted else
            KINDS["compose"].label if index in merged else
            "untouched"
        )  # fmt: skip
        assert status.look.label == expected, index
    assert [i for i, status in enumerate(found) if not status.activation] == [
        1, 3, 4, 7, 9, 11, 13, 14, 15
    ]  # fmt: skip


def unheard(graph: LayerGraph) -> MergePlan:
    """A kind that nobody knows: one convolution becomes two in a row."""
    first = fakes.conv(16, 4, 3, 16)
    second = replace(fakes.conv(4, 16, 1, 16), activation="relu")
    return MergePlan.of(graph, [Candidate(Block(1, 2), "unheard", (1,), (first, second))])


def test_an_unknown_kind_appears_by_its_name_with_all_its_convolutions() -> None:
    graph = fakes.resnet20()
    svg = chain_picture(graph, unheard(graph), KINDS)
    titles = _titles(svg)
    assert titles[1].endswith("(unheard)")
    assert not any(title.endswith("(dropped)") for title in titles)
    (group,) = [
        g
        for g in ElementTree.fromstring(svg).iter(f"{SVG}g")
        if (g.findtext(f"{SVG}title") or "").startswith("unheard 1:2")
    ]
    assert [t.text for t in group.iter(f"{SVG}text")] == ["3×3", "16→4", "1×1", "4→16"]
    boxes = [r for r in group.iter(f"{SVG}rect") if r.get("stroke")]
    assert [r.get("stroke") for r in boxes] == [GREEN, GREEN]
    left, right = boxes
    assert _number(left, "x") + _number(left, "width") < _number(right, "x")


def test_a_known_kind_has_the_label_and_colour_that_it_was_given() -> None:
    graph = fakes.resnet20()
    svg = chain_picture(graph, unheard(graph), {"unheard": Look("split in two", BLUE)})
    assert _titles(svg)[1].endswith("(split in two)")
    words = [t.text for t in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert words.count("split in two") == 1  # the legend
    assert GREEN not in re.sub(r"<style>.*?</style>", "", svg, flags=re.DOTALL)


def test_surviving_residuals_by_hand() -> None:
    graph = fakes.resnet20()
    survivors = surviving_residuals(graph, fakes.resnet_plan(graph))
    assert [(r.start, r.end) for r in survivors] == [(5, 7), (11, 13), (17, 19)]


def test_map_runs_by_hand() -> None:
    graph = fakes.resnet20()
    assert map_runs(graph, Row(5, 19)) == ((5, 7, (16, 16)), (7, 13, (8, 8)), (13, 19, (4, 4)))


def _number(element: ElementTree.Element, name: str) -> float:
    return float(element.get(name, "nan"))


def _titles(svg: str) -> list[str]:
    return [e.text or "" for e in ElementTree.fromstring(svg).iter(f"{SVG}title")]


def test_every_unit_and_every_candidate_is_drawn_once() -> None:
    run = fakes.mobilenet_run()
    titles = _titles(chain_picture(run.graph, run.plan, KINDS))
    units = [t for t in titles if t.endswith(")")]
    assert [t.split(":")[0] for t in units if t.endswith("(dropped)")] == [
        f"{i} {run.graph.units[i].name}" for i in (6, 7, 8, 13, 15, 16, 17, 25, 45, 46, 47)
    ]
    assert len(units) == 52
    assert sorted(set(titles) - set(units)) == sorted(str(c) for c in run.plan.candidates)


def test_a_removed_convolution_is_crossed_and_a_kept_one_is_not() -> None:
    graph = fakes.resnet20()
    before = chain_picture(graph, MergePlan.of(graph, []), KINDS)
    after = chain_picture(graph, MergePlan.of(graph, [fakes.identity(graph, 3, 5)]), KINDS)
    legend = 1
    assert before.count('stroke-dasharray="4 3"') == legend
    assert after.count('stroke-dasharray="4 3"') == legend + 2


def test_a_merged_box_is_as_wide_as_its_block() -> None:
    graph = fakes.resnet20()
    svg = chain_picture(graph, MergePlan.of(graph, [fakes.fit(graph, 13, 17, 3)]), KINDS)
    root = ElementTree.fromstring(svg)
    boxes = {
        (group.findtext(f"{SVG}title") or ""): group.find(f"{SVG}rect")
        for group in root.iter(f"{SVG}g")
    }
    spans = {name: box for name, box in boxes.items() if box is not None}
    wide = next(box for name, box in spans.items() if name.startswith("fit 13:17"))
    first = next(box for name, box in spans.items() if name.startswith("13 "))
    last = next(box for name, box in spans.items() if name.startswith("16 "))
    assert _number(wide, "x") == _number(first, "x")
    right = _number(last, "x") + _number(last, "width")
    assert _number(wide, "x") + _number(wide, "width") == right


def test_borders_between_segments_carry_their_reason() -> None:
    run = fakes.mobilenet_run()
    words = "".join(ElementTree.fromstring(chain_picture(run.graph, run.plan, KINDS)).itertext())
    assert "before unit 33: the output of b29.pwl is read by" in words
    without = replace(run.graph, barriers=())
    words = "".join(ElementTree.fromstring(chain_picture(without, run.plan, KINDS)).itertext())
    assert "before unit 33: nothing merges across" in words


def test_hostile_names_stay_text() -> None:
    graph = fakes.resnet20()
    hostile = '</title><script>alert("1")</script>&amp;'
    units = (replace(graph.units[0], name=hostile), *graph.units[1:])
    split = (Segment(0, 1), Segment(1, 19))
    graph = replace(graph, units=units, segments=split, barriers=(Barrier("x", hostile * 9, 1),))
    svg = chain_picture(graph, MergePlan.of(graph, []), KINDS)
    assert "<script" not in svg
    assert any(hostile in title for title in _titles(svg))


def test_nested_and_torn_residuals_are_drawn() -> None:
    graph = fakes.resnet20()
    outer = Residual(1, 19, graph.residuals[0].shortcuts)
    nested = replace(graph, residuals=(outer, *graph.residuals))
    plan = MergePlan.of(nested, [])
    additions = len(re.findall(r'r="4.6"', chain_picture(nested, plan, KINDS)))
    assert additions == 1 + 2 * (9 + 1)
    ElementTree.fromstring(chain_picture(nested, plan, KINDS))
