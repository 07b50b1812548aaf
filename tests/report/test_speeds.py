"""Speed at every precision, the mark where latencies do not compare, and what int8 cost."""

from __future__ import annotations

from dataclasses import replace

from tests.report import fakes
from trt_layermerge.report import speeds
from trt_layermerge.report.contents import build_document
from trt_layermerge.report.data import RunReport
from trt_layermerge.report.document import Bullets, Paragraph, Section, Table
from trt_layermerge.report.html import render_html
from trt_layermerge.report.markdown import render_markdown
from trt_layermerge.report.rounding import rounding

TWICE, NEARLY = "2.04x (2.01x to 2.07x)", "1.97x (1.90x to 2.00x)"


def only(sections: tuple[Section, ...]) -> Section:
    (section,) = sections
    return section


def without(run: RunReport, **changes: object) -> RunReport:
    assert run.bench is not None
    return replace(run, bench=replace(run.bench, **changes))  # type: ignore[arg-type]


def test_every_precision_has_both_networks_side_by_side() -> None:
    table, costs, notes = only(speeds.speeds(fakes.resnet_run())).parts
    assert isinstance(table, Table) and isinstance(costs, Table) and isinstance(notes, Bullets)
    assert table == Table(
        ("precision", "network", "median", "90 %", "99 %", "images / s", "speed-up"),
        (
            ("fp16", "original", "0.8421 ms", "0.8610 ms", "0.9020 ms", "1\u2009188", ""),
            ("", "merged", "0.4135 ms", "0.4203 ms", "0.4461 ms", "2\u2009418", TWICE),
            ("int8", "original", "0.6100 ms", "0.6200 ms", "0.6300 ms", "1\u2009639", ""),
            ("", "merged", "0.3100 ms", "0.3200 ms", "0.3300 ms", "3\u2009226", NEARLY),
        ),
        (2, 3, 4, 5, 6),
    )
    assert costs.head == ("precision", "network", "launch by the host", "power", "energy of a run")
    assert costs.rows[0] == ("fp16", "original", "0.0310 ms", "12.2 W", "6.88 mJ")
    assert costs.rows[3] == ("", "merged", *["not measured"] * 3)
    assert notes.items == fakes.resnet_run().bench.notes  # type: ignore[union-attr]


def test_what_was_not_read_anywhere_has_no_table() -> None:
    run = without(fakes.resnet_run(), pairings=fakes.PAIRINGS[1:], notes=())
    assert len(only(speeds.speeds(run)).parts) == 1
    assert speeds.speeds(without(run, pairings=())) == ()
    assert speeds.speeds(fakes.mobilenet_run()) == ()


def test_latencies_that_do_not_compare_are_marked_above_everything_on_both_pages() -> None:
    document = build_document(fakes.resnet_run())
    (words,) = document.notices
    assert "do not compare" in words and "the GPU's clock is free" in words
    page = render_html(document)
    assert page.index('class="notice"') < page.index('class="answers"')
    assert "the GPU&#x27;s clock is free" in page
    assert "> **Mind:** the latencies of this page do not compare" in render_markdown(document)


def test_comparable_latencies_have_no_mark() -> None:
    run = without(fakes.resnet_run(), reason=None)
    document = build_document(run)
    assert document.notices == () == build_document(fakes.mobilenet_run()).notices
    assert 'class="notice"' not in render_html(document)
    assert "**Mind:**" not in render_markdown(document)


def test_int8_tells_what_it_cost_and_what_stayed_in_float() -> None:
    costs, method, words, kept = only(rounding(fakes.resnet_run())).parts
    assert isinstance(costs, Table) and isinstance(kept, Table)
    assert costs.rows == (("merged", "89.92 %", "89.51 %", "98.75 %", "1\u2009000", "1", "1"),)
    assert isinstance(method, Paragraph) and "entropy on 512 training images" in method.text
    assert words == Paragraph("Left in float in the merged network:")
    assert kept.rows == (("/stem/Conv", "Conv", "14.2", "0.03125"),)


def test_a_network_that_is_all_int8_says_so_and_one_that_is_none_has_no_section() -> None:
    found = {**fakes.CALIBRATION["networks"]["merged"], "keep_float": []}  # type: ignore[index]
    run = replace(fakes.resnet_run(), calibration={"networks": {"original": found}})
    *_, last = only(rounding(run)).parts
    assert last == Paragraph("Every layer of the original network is in int8.")
    nothing = {"reason": "nothing is int8", "networks": {}}
    assert rounding(replace(run, calibration=nothing)) == ()
    assert rounding(replace(run, calibration=None)) == ()
